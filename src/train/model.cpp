// Each block of a layer as ops on the tape; the loss a chunk of rows at a time.
#include "train/model.h"

#include <algorithm>
#include <array>
#include <functional>

#include "base/error.h"
#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/norm.h"
#include "ops/rows.h"
#include "train/loss.h"

namespace nibble::train {

using autograd::Tape;
using autograd::Var;

int64_t Batch::target_count() const {
  return std::count_if(targets.begin(), targets.end(), [](int32_t target) { return target >= 0; });
}

static Tensor uploaded(const ops::Backend& backend, const std::vector<int32_t>& values) {
  Tensor tensor = backend.empty(DType::i32, {static_cast<int64_t>(values.size())});
  backend.upload(tensor.data(), values.data(), tensor.size_bytes());
  return tensor;
}

/// One forward pass; angles live here until the way back is done.
struct TrainableModel::Pass {
  const Batch& batch;
  Tape tape;
  bool is_training;
  uint64_t seed;
  float scale;
  struct Angles {
    Tensor cos, sin, minus_sin;  // (tokens, rotary_dim / 2)
  };
  std::vector<Angles> angles = {};  // of each rope
};

/// Rows of an MLP at a time where a batch has at least twice as many and layers are checkpointed.
constexpr int64_t kMlpRows = 8192;

/// What passes between layers: bf16 on a GPU that multiplies it, if that is the model's type, too.
DType activation_dtype(const models::Decoder& base) {
  const device::CudaStream* gpu = base.backend().cuda();
  const bool has_bf16 = gpu && gpu->description().capability >= 80;
  return has_bf16 && base.weights().dtype() != DType::f32 ? DType::bf16 : DType::f32;
}

TrainableModel::TrainableModel(const models::Decoder& base, adapters::Adapter& adapter, bool has_gradient_checkpointing)
    : base_(base), has_gradient_checkpointing_(has_gradient_checkpointing), dtype_(activation_dtype(base)) {
  const models::ModelSpec& spec = base.spec();
  const models::Weights& weights = base.weights();
  if (spec.alibi.dtype != DType::f32)
    fail(ErrorCode::unsupported, "training a model with ALiBi in {} is not supported ({})", name_of(spec.alibi.dtype),
         spec.architecture);
  for (const nn::RopeSpec& rope : spec.ropes) ropes_.emplace_back(rope);
  if (spec.encoder || !spec.relative_biases.empty())
    fail(ErrorCode::unsupported, "training an encoder-decoder is not supported ({})", spec.architecture);
  uint64_t number = 0;
  layers_.reserve(spec.layers.size());
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    const models::LayerSpec& layer = spec.layers[i];
    if (layer.mlp.experts.count > 0)
      fail(ErrorCode::unsupported, "training a model with experts is not supported ({})", spec.architecture);
    if (layer.attention.softcap > 0)
      fail(ErrorCode::unsupported, "training a model with soft caps is not supported ({})", spec.architecture);
    if (layer.attention.q_norm.count > 0)
      fail(ErrorCode::unsupported, "training a model with a norm for each head is not supported ({})",
           spec.architecture);
    const std::string prefix = spec.layers_prefix + std::to_string(i) + ".";
    layers_.push_back(models::bind_layer(base.backend(), spec, layer, prefix, weights));
    const models::Layer& bound = layers_.back();
    const auto attach = [&](const nn::Linear& linear, const std::string& name) {
      return Attached{&linear, name.empty() ? nullptr : adapter.find(prefix + name), ++number};
    };
    const models::MlpWeights& mlp = bound.mlps[0];
    linears_.push_back({attach(bound.attention.q, layer.attention.q), attach(bound.attention.k, layer.attention.k),
                        attach(bound.attention.v, layer.attention.v), attach(bound.attention.qkv, layer.attention.qkv),
                        attach(bound.attention.out, layer.attention.out), attach(mlp.gate, layer.mlp.gate),
                        attach(mlp.up, layer.mlp.up), attach(mlp.gate_up, layer.mlp.gate_up),
                        attach(mlp.down, layer.mlp.down)});
  }
  const auto linear = [&](const std::string& path) {
    if (!path.empty() && adapter.find(path))
      fail(ErrorCode::unsupported, "an adapter on '{}' is not supported: only those of layers are trained", path);
    return path.empty() ? nn::Linear{} : models::bind_linear(base.backend(), spec, weights, path);
  };
  if (spec.logit_softcap > 0)
    fail(ErrorCode::unsupported, "training a model with soft caps is not supported ({})", spec.architecture);
  if (!spec.alibi.slopes.empty()) {
    alibi_ = base.backend().empty(DType::f32, {static_cast<int64_t>(spec.alibi.slopes.size())});
    base.backend().upload(alibi_.data(), spec.alibi.slopes.data(), alibi_.size_bytes());
  }
  embed_ = weights.dense(spec.embed + ".weight");
  if (!spec.positions.embed.empty()) positions_ = weights.dense(spec.positions.embed + ".weight");
  project_in_ = linear(spec.project_in);
  project_out_ = linear(spec.project_out);
  head_ = linear(spec.head);
  embed_norm_ = models::bind_norm(base.backend(), weights, "", spec.embed_norm);
  final_norm_ = models::bind_norm(base.backend(), weights, "", spec.final_norm);
}

TrainableModel::Pass TrainableModel::make_pass(const Batch& batch, bool is_training, uint64_t seed, float scale) const {
  int64_t tokens = 0;
  for (const int64_t length : batch.lengths) tokens += length;
  require(static_cast<size_t>(tokens) == batch.ids.size() && batch.targets.size() == batch.ids.size(),
          "a batch of {} ids and {} targets, expected {} each", batch.ids.size(), batch.targets.size(), tokens);
  for (const int32_t id : batch.ids)
    require(id >= 0 && id < base_.vocab_size(), "token id {}: expected 0 to {}", id, base_.vocab_size() - 1);
  for (const int32_t target : batch.targets)
    require(target < base_.vocab_size(), "target {}: expected at most {}", target, base_.vocab_size() - 1);
  Pass pass{batch, Tape(is_training), is_training, seed, scale};
  for (const nn::Rope& rope : ropes_) {
    const int64_t half = rope.spec().rotary_dim / 2;
    Tensor cos(DType::f32, {tokens, half}), sin(DType::f32, {tokens, half}), minus_sin(DType::f32, {tokens, half});
    int64_t at = 0;
    for (const int64_t length : batch.lengths) {
      rope.fill(0, length, length, cos.as<float>() + at, sin.as<float>() + at);
      at += length * half;
    }
    std::transform(sin.as<float>(), sin.as<float>() + sin.count(), minus_sin.as<float>(), std::negate<float>());
    const ops::Backend& backend = base_.backend();
    pass.angles.push_back({backend.to_device(cos), backend.to_device(sin), backend.to_device(minus_sin)});
  }
  return pass;
}

Var TrainableModel::run_norm(Tape& tape, const std::optional<nn::Norm>& norm, const Var& x) const {
  if (!norm) return x;
  const Var weight = autograd::constant(norm->weight);
  if (norm->kind == nn::NormKind::rms)
    return ops::rms_norm(tape, base_.backend(), x, weight, norm->eps, norm->weight_offset);
  return ops::layer_norm(tape, base_.backend(), x, weight, norm->bias ? autograd::constant(norm->bias) : nullptr,
                         norm->eps);
}

Var TrainableModel::run_linear(Tape& tape, const Pass& pass, const Attached& linear, const Var& x, uint64_t salt,
                               bool needs_value) const {
  if (!pass.is_training && linear.lora && linear.lora->dropout > 0) {
    nn::Lora whole = *linear.lora;
    whole.dropout = 0;
    return nn::linear(tape, base_.backend(), x, *linear.layer, &whole);  // an evaluation keeps nothing of it
  }
  return nn::linear(tape, base_.backend(), x, *linear.layer, linear.lora,
                    pass.seed + linear.number * 0x9e3779b97f4a7c15u + salt * 0xd1342543de82ef95u, needs_value);
}

Var TrainableModel::run_attention(Tape& tape, const Pass& pass, size_t index, const Var& x) const {
  const models::AttentionSpec& spec = layers_[index].spec->attention;
  const LayerLinears& linears = linears_[index];
  ops::SplitHeads heads;
  if (linears.qkv.layer->rows > 0) {
    heads = ops::split_heads(tape, base_.backend(), run_linear(tape, pass, linears.qkv, x), spec.qkv_groups,
                             spec.heads / spec.qkv_groups, spec.kv_heads / spec.qkv_groups, spec.head_dim);
  } else {
    heads = {run_linear(tape, pass, linears.q, x), run_linear(tape, pass, linears.k, x),
             run_linear(tape, pass, linears.v, x)};
  }
  heads.q = run_norm(tape, layers_[index].attention.q_norm, heads.q);
  heads.k = run_norm(tape, layers_[index].attention.k_norm, heads.k);
  if (spec.rope) {
    const Pass::Angles& of = pass.angles[*spec.rope];
    const ops::RopeAngles angles{of.cos.as<float>(), of.sin.as<float>(), of.minus_sin.as<float>(),
                                 ropes_[*spec.rope].spec().rotary_dim, ropes_[*spec.rope].spec().interleaved};
    heads.q = ops::rope(tape, base_.backend(), heads.q, spec.heads, spec.head_dim, angles);
    heads.k = ops::rope(tape, base_.backend(), heads.k, spec.kv_heads, spec.head_dim, angles);
  }
  const Var attended = ops::attention(tape, base_.backend(), heads.q, heads.k, heads.v, pass.batch.lengths,
                                      {spec.heads, spec.kv_heads, spec.head_dim, spec.scale, spec.window,
                                       spec.has_alibi ? alibi_.as<float>() : nullptr});
  return run_linear(tape, pass, linears.out, attended);
}

Var TrainableModel::run_mlp(Tape& tape, const Pass& pass, size_t index, const Var& x, uint64_t salt,
                            bool needs_value) const {
  const models::MlpSpec& spec = layers_[index].spec->mlp;
  const LayerLinears& linears = linears_[index];
  const ops::Backend& backend = base_.backend();
  if (linears.gate_up.layer->rows > 0) {
    const Var both = run_linear(tape, pass, linears.gate_up, x, salt);
    return run_linear(tape, pass, linears.down, ops::activate_gated(tape, backend, both, spec.activation), salt,
                      needs_value);
  }
  if (linears.gate.layer->rows > 0) {
    const Var gate = run_linear(tape, pass, linears.gate, x, salt), up = run_linear(tape, pass, linears.up, x, salt);
    return run_linear(tape, pass, linears.down, ops::activate_times(tape, backend, gate, up, spec.activation), salt,
                      needs_value);
  }
  const Var up = run_linear(tape, pass, linears.up, x, salt);
  return run_linear(tape, pass, linears.down, ops::activate(tape, backend, up, spec.activation), salt, needs_value);
}

Var TrainableModel::run_mlp_rows(Tape& tape, const Pass& pass, size_t index, const Var& x, bool needs_value) const {
  const bool is_long = has_gradient_checkpointing_ && x->value.dim(0) >= 2 * kMlpRows;
  if (!is_long) return run_mlp(tape, pass, index, x, 0, needs_value);
  return ops::checkpoint_rows(tape, base_.backend(), x, kMlpRows, x->value.dim(1), needs_value,
                              [this, &pass, index](Tape& again, const Var& rows, int64_t first) {
                                return run_mlp(again, pass, index, rows, static_cast<uint64_t>(first),
                                               !again.is_recording());
                              });
}

Var TrainableModel::run_layer(Tape& tape, const Pass& pass, size_t index, const Var& x) const {
  const models::Layer& layer = layers_[index];
  const models::LayerSpec& spec = *layer.spec;
  const ops::Backend& backend = base_.backend();
  // What a checkpoint computes anew is what the way back needs, and the sum at a layer's end is not.
  const bool is_again = has_gradient_checkpointing_ && tape.is_recording();
  const bool needs_value = !is_again || layer.mlp_out_norm || layer.mlp_sum_norm;
  const Var attention_x = run_norm(tape, layer.attention_norm, x);
  Var mlp_x;
  if (spec.is_parallel) mlp_x = layer.mlp_norm ? run_norm(tape, layer.mlp_norm, x) : attention_x;
  const Var attended = run_norm(tape, layer.attention_out_norm, run_attention(tape, pass, index, attention_x));
  Var sum =
      run_norm(tape, layer.attention_sum_norm, ops::add(tape, backend, spec.keeps_normed ? attention_x : x, attended));
  if (!mlp_x) mlp_x = run_norm(tape, layer.mlp_norm, sum);
  const Var branch = run_norm(tape, layer.mlp_out_norm, run_mlp_rows(tape, pass, index, mlp_x, needs_value));
  return run_norm(tape, layer.mlp_sum_norm, ops::add(tape, backend, spec.keeps_normed ? mlp_x : sum, branch));
}

Var TrainableModel::run(Pass& pass) const {
  const models::ModelSpec& spec = base_.spec();
  const ops::Backend& backend = base_.backend();
  const auto tokens = static_cast<int64_t>(pass.batch.ids.size());
  Var x = autograd::constant(backend.empty(dtype_, {tokens, embed_.dim(1)}));
  const Tensor ids = uploaded(backend, pass.batch.ids);
  backend.kernels().embed(backend.context(), {embed_.data(), embed_.dtype(), ids.as<int32_t>(), tokens, embed_.dim(1),
                                              spec.embed_scale, x->value.data(), false, dtype_});
  if (project_in_.rows > 0) x = nn::linear(pass.tape, backend, x, project_in_);
  if (positions_) {
    std::vector<int32_t> positions;
    for (const int64_t length : pass.batch.lengths)
      for (int64_t t = 0; t < length; ++t) positions.push_back(static_cast<int32_t>(t + spec.positions.offset));
    const Tensor rows = uploaded(backend, positions);
    backend.kernels().embed(backend.context(), {positions_.data(), positions_.dtype(), rows.as<int32_t>(), tokens,
                                                spec.hidden_size, 1, x->value.data(), true, dtype_});
  }
  x = run_norm(pass.tape, embed_norm_, x);
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (has_gradient_checkpointing_ && pass.is_training)
      x = checkpoint(pass.tape, x,
                     [this, &pass, i](Tape& tape, const Var& in) { return run_layer(tape, pass, i, in); });
    else
      x = run_layer(pass.tape, pass, i, x);
  }
  return x;
}

double TrainableModel::run_loss(Pass& pass, const Var& x) const {
  Var out = run_norm(pass.tape, final_norm_, x);
  if (project_out_.rows > 0) out = nn::linear(pass.tape, base_.backend(), out, project_out_);
  return head_loss(pass.tape, base_.backend(), out, head_, pass.batch.targets, pass.scale);
}

double TrainableModel::accumulate_gradients(const Batch& batch, uint64_t seed, float scale) {
  Pass pass = make_pass(batch, true, seed, scale);
  const double loss = run_loss(pass, run(pass));
  pass.tape.backward();
  return loss;
}

double TrainableModel::evaluate(const Batch& batch) {
  Pass pass = make_pass(batch, false, 0, 1);
  return run_loss(pass, run(pass));
}

}  // namespace nibble::train
