// Each block of a layer as ops on the tape; the loss a chunk of rows at a time.
#include "train/model.h"

#include <algorithm>
#include <array>
#include <functional>
#include <numeric>

#include "base/error.h"
#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
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

TrainableModel::TrainableModel(const models::Decoder& base, adapters::Adapter& adapter, bool has_gradient_checkpointing,
                               bool has_activation_offloading)
    : base_(base), has_gradient_checkpointing_(has_gradient_checkpointing), dtype_(activation_dtype(base)) {
  refuse_unsupported();
  if (has_activation_offloading) {
    require(has_gradient_checkpointing && base.backend().cuda(),
            "activation_offloading: found it without {}: inputs of checkpointed layers move from a GPU to main memory",
            has_gradient_checkpointing ? "a GPU" : "gradient_checkpointing");
    store_ = std::make_unique<HostStore>(base.backend());
  }
  for (const nn::RopeSpec& rope : base.spec().ropes) ropes_.emplace_back(rope);
  if (!base.spec().alibi.slopes.empty()) {
    alibi_ = base.backend().empty(DType::f32, {static_cast<int64_t>(base.spec().alibi.slopes.size())});
    base.backend().upload(alibi_.data(), base.spec().alibi.slopes.data(), alibi_.size_bytes());
  }
  bind(adapter);
}

void TrainableModel::refuse_unsupported() const {
  const models::ModelSpec& spec = base_.spec();
  if (spec.encoder || !spec.relative_biases.empty())
    fail(ErrorCode::unsupported, "training an encoder-decoder is not supported ({})", spec.architecture);
  for (const models::LayerSpec& layer : spec.layers)
    if (layer.mlp.experts.count > 0)
      fail(ErrorCode::unsupported, "training a model with experts is not supported ({})", spec.architecture);
}

/// What the layer multiplies with: the trained weight itself, so that steps are seen at once; where activations are
/// bf16, its copy in bf16, made anew for each pass.
nn::DenseWeight TrainableModel::weight_in_use(const Var& trained) {
  if (dtype_ == DType::f32) return {trained->value};
  for (const Rounded& rounded : rounded_)
    if (rounded.from == trained) return {rounded.to};
  rounded_.push_back({trained, base_.backend().empty(dtype_, trained->value.shape())});
  return {rounded_.back().to};
}

/// Brings up to date what is made of trained values.
void TrainableModel::refresh() {
  const ops::Backend& backend = base_.backend();
  for (Rounded& rounded : rounded_) {
    const int64_t rows = rounded.to.dim(0), cols = rounded.to.dim(1);
    if (!row_numbers_ || row_numbers_.count() < rows) {
      std::vector<int32_t> numbers(static_cast<size_t>(rows));
      std::iota(numbers.begin(), numbers.end(), 0);
      row_numbers_ = uploaded(backend, numbers);
    }
    backend.kernels().embed(backend.context(), {rounded.from->value.data(), DType::f32, row_numbers_.as<int32_t>(),
                                                rows, cols, 1, rounded.to.data(), false, dtype_});
  }
  for (nn::DoraParts& parts : parts_) nn::refresh(backend, parts);
  if (store_) store_->clear();
}

Var TrainableModel::trained(const adapters::Adapter& adapter, const std::string& name) const {
  const Var found = adapter.find_parameter(name);
  return found || !adapter.is_whole ? found : adapter.find_parameter(models::resolve_tied(base_.spec(), name));
}

TrainableModel::Attached TrainableModel::attach(adapters::Adapter& adapter, nn::Linear& linear,
                                                const std::string& path) {
  Attached result{&linear};
  if (linear.rows == 0) return result;
  if (const adapters::AdapterLayer* layer = adapter.find_layer(path)) {
    result.lora = &layer->lora;
    if (layer->residual) linear.weight = *layer->residual;
  }
  result.weight = trained(adapter, path + ".weight");
  result.bias = trained(adapter, path + ".bias");
  if (result.weight) linear.weight = weight_in_use(result.weight);
  if (result.bias) linear.bias = result.bias->value;
  if (result.lora && result.lora->magnitude) {
    parts_.push_back(nn::dora_parts(linear, *result.lora));
    result.parts = &parts_.back();
  }
  return result;
}

void TrainableModel::attach_norm(const adapters::Adapter& adapter, std::optional<nn::Norm>& norm,
                                 const std::string& prefix, const models::NormSpec& spec) {
  if (!norm) return;
  const NormVariables variables{trained(adapter, prefix + spec.module + ".weight"),
                                trained(adapter, prefix + spec.module + ".bias")};
  const bool is_part = spec.count > 0 && trained(adapter, prefix + spec.module + ".0.weight");
  if (is_part || ((variables.weight || variables.bias) && spec.scale != 1))
    fail(ErrorCode::unsupported, "training the norm '{}' is not supported", prefix + spec.module);
  if (!variables.weight && !variables.bias) return;
  if (variables.weight) norm->weight = variables.weight->value;
  if (variables.bias) norm->bias = variables.bias->value;
  norms_[&*norm] = variables;
}

void TrainableModel::bind(adapters::Adapter& adapter) {
  const models::ModelSpec& spec = base_.spec();
  const models::Weights& weights = base_.weights();
  const ops::Backend& backend = base_.backend();
  uint64_t number = 0;
  layers_.reserve(spec.layers.size());
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    const models::LayerSpec& layer = spec.layers[i];
    const std::string prefix = spec.layers_prefix + std::to_string(i) + ".";
    layers_.push_back(models::bind_layer(backend, spec, layer, prefix, weights));
    models::Layer& bound = layers_.back();
    const auto with_number = [&](nn::Linear& linear, const std::string& name) {
      Attached attached = attach(adapter, linear, prefix + name);
      attached.number = ++number;
      return attached;
    };
    models::AttentionWeights& attention = bound.attention;
    models::MlpWeights& mlp = bound.mlps[0];
    linears_.push_back({with_number(attention.q, layer.attention.q), with_number(attention.k, layer.attention.k),
                        with_number(attention.v, layer.attention.v), with_number(attention.qkv, layer.attention.qkv),
                        with_number(attention.out, layer.attention.out), with_number(mlp.gate, layer.mlp.gate),
                        with_number(mlp.up, layer.mlp.up), with_number(mlp.gate_up, layer.mlp.gate_up),
                        with_number(mlp.down, layer.mlp.down)});
    const std::pair<std::optional<nn::Norm>*, const models::NormSpec*> norms[] = {
        {&bound.attention_norm, &layer.attention_norm},
        {&bound.attention_out_norm, &layer.attention_out_norm},
        {&bound.attention_sum_norm, &layer.attention_sum_norm},
        {&bound.mlp_norm, &layer.mlp_norm},
        {&bound.mlp_out_norm, &layer.mlp_out_norm},
        {&bound.mlp_sum_norm, &layer.mlp_sum_norm},
        {&attention.q_norm, &layer.attention.q_norm},
        {&attention.k_norm, &layer.attention.k_norm}};
    for (const auto& [norm, norm_spec] : norms) attach_norm(adapter, *norm, prefix, *norm_spec);
  }
  const auto linear = [&](nn::Linear& target, const std::string& path) {
    if (path.empty()) return Attached{&target};
    if (adapter.find(path))
      fail(ErrorCode::unsupported, "an adapter on '{}' is not supported: only those of layers are trained", path);
    target = models::bind_linear(backend, spec, weights, path);
    return attach(adapter, target, path);
  };
  into_ = linear(project_in_, spec.project_in);
  out_of_ = linear(project_out_, spec.project_out);
  const Attached head = linear(head_.layer, spec.head);
  head_.weight = head.weight;
  head_.bias = head.bias;
  head_.softcap = spec.logit_softcap;
  embed_norm_ = models::bind_norm(backend, weights, "", spec.embed_norm);
  final_norm_ = models::bind_norm(backend, weights, "", spec.final_norm);
  attach_norm(adapter, embed_norm_, "", spec.embed_norm);
  attach_norm(adapter, final_norm_, "", spec.final_norm);
  embed_variable_ = trained(adapter, spec.embed + ".weight");
  embed_ = embed_variable_ ? embed_variable_->value : weights.dense(spec.embed + ".weight");
  if (spec.positions.embed.empty()) return;
  positions_variable_ = trained(adapter, spec.positions.embed + ".weight");
  positions_ = positions_variable_ ? positions_variable_->value : weights.dense(spec.positions.embed + ".weight");
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
  const auto found = norms_.find(&*norm);
  const NormVariables variables = found == norms_.end() ? NormVariables{} : found->second;
  const Var weight = variables.weight ? variables.weight : autograd::constant(norm->weight);
  if (norm->kind == nn::NormKind::rms)
    return ops::rms_norm(tape, base_.backend(), x, weight, norm->eps, norm->weight_offset);
  Var bias = variables.bias;
  if (!bias && norm->bias) bias = autograd::constant(norm->bias);
  return ops::layer_norm(tape, base_.backend(), x, weight, bias, norm->eps);
}

Var TrainableModel::run_linear(Tape& tape, const Pass& pass, const Attached& linear, const Var& x, uint64_t salt,
                               bool needs_value) const {
  const ops::Backend& backend = base_.backend();
  const uint64_t seed = pass.seed + linear.number * 0x9e3779b97f4a7c15u + salt * 0xd1342543de82ef95u;
  Var y;
  if (linear.parts) {
    y = nn::dora_linear(tape, backend, x, *linear.layer, *linear.parts, pass.is_training ? linear.lora->dropout : 0,
                        seed);
  } else if (!pass.is_training && linear.lora && linear.lora->dropout > 0) {
    nn::Lora whole = *linear.lora;
    whole.dropout = 0;
    y = nn::linear(tape, backend, x, *linear.layer, &whole);  // an evaluation keeps nothing of it
  } else {
    y = nn::linear(tape, backend, x, *linear.layer, linear.lora, seed, needs_value);
  }
  if (linear.weight || linear.bias) record_own(tape, linear, x, y);
  return y;
}

/// The gradients of the layer's own weight and bias, taken before the layer's step passes y's gradient on.
void TrainableModel::record_own(Tape& tape, const Attached& linear, const Var& x, const Var& y) const {
  const bool is_passed_on = y->requires_grad;
  y->requires_grad = tape.is_recording();
  tape.record([this, x, y, is_passed_on, weight = linear.weight, bias = linear.bias, rows = linear.layer->rows,
               cols = linear.layer->cols] {
    const ops::Backend& backend = base_.backend();
    const int64_t m = y->grad.count() / rows;
    if (weight) {
      const auto dw = ops::gradient_of(backend, *weight);
      backend.kernels().weight_gradient(backend.context(), {y->grad.as<float>(), x->value.as<float>(), m, rows, cols,
                                                            dw.data, dw.accumulate, y->grad.dtype()});
    }
    if (bias)
      backend.kernels().sum_columns(
          backend.context_for(m * rows),
          {y->grad.as<float>(), nullptr, m, rows, ops::gradient_sum_of(backend, bias), y->grad.dtype()});
    if (!is_passed_on) y->grad = {};
  });
}

/// x's gradient into the rows of a table that it was looked up from: a row's n-th use in the n-th call, since one call
/// takes no row twice.
void TrainableModel::record_rows(Tape& tape, const Var& x, const Var& table, const std::vector<int32_t>& ids,
                                 float scale) const {
  if (!table) return;
  x->requires_grad = tape.is_recording();
  tape.record([this, x, table, ids, scale] {
    const ops::Backend& backend = base_.backend();
    const int64_t width = table->value.dim(1);
    float* target = ops::gradient_sum_of(backend, table);
    std::unordered_map<int32_t, size_t> uses;
    std::vector<std::vector<int32_t>> rows, sources;
    for (size_t i = 0; i < ids.size(); ++i) {
      const size_t use = uses[ids[i]]++;
      if (use == rows.size()) {
        rows.emplace_back();
        sources.emplace_back();
      }
      rows[use].push_back(ids[i]);
      sources[use].push_back(static_cast<int32_t>(i));
    }
    for (size_t use = 0; use < rows.size(); ++use) {
      const auto count = static_cast<int64_t>(rows[use].size());
      const Tensor from = uploaded(backend, sources[use]), to = uploaded(backend, rows[use]);
      const std::vector<float> scales(rows[use].size(), scale);
      Tensor weights = backend.empty(DType::f32, {count}), picked = backend.empty(DType::f32, {count, width});
      backend.upload(weights.data(), scales.data(), weights.size_bytes());
      backend.kernels().embed(backend.context_for(count * width), {x->grad.data(), x->grad.dtype(), from.as<int32_t>(),
                                                                   count, width, 1, picked.as<float>()});
      backend.kernels().scatter_add_rows(
          backend.context_for(count * width),
          {picked.as<float>(), to.as<int32_t>(), weights.as<float>(), count, width, target});
    }
  });
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
  const Var attended = ops::attention(
      tape, base_.backend(), heads.q, heads.k, heads.v, pass.batch.lengths,
      {spec.heads, spec.kv_heads, spec.head_dim, spec.scale, spec.window, spec.has_alibi ? alibi_.as<float>() : nullptr,
       spec.softcap, base_.spec().alibi.dtype, base_.spec().alibi.scale});
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
  return run_norm(tape, layer.mlp_sum_norm,
                  ops::add(tape, backend, spec.keeps_normed ? mlp_x : sum, branch, needs_value));
}

Var TrainableModel::run(Pass& pass) const {
  const models::ModelSpec& spec = base_.spec();
  const ops::Backend& backend = base_.backend();
  const auto tokens = static_cast<int64_t>(pass.batch.ids.size());
  Var x = autograd::constant(backend.empty(dtype_, {tokens, embed_.dim(1)}));
  const Tensor ids = uploaded(backend, pass.batch.ids);
  backend.kernels().embed(backend.context(), {embed_.data(), embed_.dtype(), ids.as<int32_t>(), tokens, embed_.dim(1),
                                              spec.embed_scale, x->value.data(), false, dtype_});
  record_rows(pass.tape, x, embed_variable_, pass.batch.ids, spec.embed_scale);
  if (project_in_.rows > 0) x = run_linear(pass.tape, pass, into_, x);
  if (positions_) {
    std::vector<int32_t> positions;
    for (const int64_t length : pass.batch.lengths)
      for (int64_t t = 0; t < length; ++t) positions.push_back(static_cast<int32_t>(t + spec.positions.offset));
    const Tensor rows = uploaded(backend, positions);
    backend.kernels().embed(backend.context(), {positions_.data(), positions_.dtype(), rows.as<int32_t>(), tokens,
                                                spec.hidden_size, 1, x->value.data(), true, dtype_});
    record_rows(pass.tape, x, positions_variable_, positions, 1);
  }
  x = run_norm(pass.tape, embed_norm_, x);
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (has_gradient_checkpointing_ && pass.is_training)
      x = checkpoint(
          pass.tape, x, [this, &pass, i](Tape& tape, const Var& in) { return run_layer(tape, pass, i, in); },
          store_.get());
    else
      x = run_layer(pass.tape, pass, i, x);
  }
  return x;
}

double TrainableModel::run_loss(Pass& pass, const Var& x) const {
  Var out = run_norm(pass.tape, final_norm_, x);
  if (project_out_.rows > 0) out = run_linear(pass.tape, pass, out_of_, out);
  return head_loss(pass.tape, base_.backend(), out, head_, pass.batch.targets, pass.scale);
}

double TrainableModel::accumulate_gradients(const Batch& batch, uint64_t seed, float scale) {
  refresh();
  Pass pass = make_pass(batch, true, seed, scale);
  const double loss = run_loss(pass, run(pass));
  pass.tape.backward();
  return loss;
}

double TrainableModel::evaluate(const Batch& batch) {
  refresh();
  Pass pass = make_pass(batch, false, 0, 1);
  return run_loss(pass, run(pass));
}

}  // namespace nibble::train
