// Binds layers to what is trained, and runs a batch through them; the loss a chunk of rows at a time.
#include "train/model.h"

#include <algorithm>
#include <array>
#include <functional>
#include <numeric>

#include "base/error.h"
#include "ops/gradient.h"
#include "ops/norm.h"
#include "train/loss.h"
#include "train/pass.h"

namespace nibble::train {

using autograd::Tape;
using autograd::Var;

int64_t Batch::target_count() const {
  return std::count_if(targets.begin(), targets.end(), [](int32_t target) { return target >= 0; });
}

/// What passes between layers: bf16 on a GPU that multiplies it, if that is the model's type, too. Experts are chosen
/// and summed in fp32.
DType activation_dtype(const models::Decoder& base) {
  const device::CudaStream* gpu = base.backend().cuda();
  const auto& layers = base.spec().layers;
  const bool has_experts =
      std::any_of(layers.begin(), layers.end(), [](const auto& layer) { return layer.mlp.experts.count > 0; });
  const bool has_bf16 = gpu && gpu->description().capability >= 80 && !has_experts;
  return has_bf16 && base.weights().dtype() != DType::f32 ? DType::bf16 : DType::f32;
}

TrainableModel::TrainableModel(const models::Decoder& base, adapters::Adapter& adapter, bool has_gradient_checkpointing,
                               bool has_activation_offloading)
    : base_(base), has_gradient_checkpointing_(has_gradient_checkpointing), dtype_(activation_dtype(base)) {
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

/// What the layer multiplies with: the trained weight itself, so that steps are seen at once; where activations are
/// bf16, its copy in bf16, made anew for each pass.
nn::DenseWeight TrainableModel::weight_in_use(const Var& trained) {
  if (dtype_ == DType::f32) return {trained->value};
  for (const Rounded& rounded : rounded_)
    if (rounded.from == trained) return {rounded.to};
  rounded_.push_back({trained, base_.backend().empty(dtype_, trained->value.shape())});
  return {rounded_.back().to};
}

/// 0, 1, ...: at least `rows` of them.
const int32_t* TrainableModel::row_numbers(int64_t rows) {
  if (!row_numbers_ || row_numbers_.count() < rows) {
    std::vector<int32_t> numbers(static_cast<size_t>(rows));
    std::iota(numbers.begin(), numbers.end(), 0);
    row_numbers_ = uploaded(base_.backend(), numbers);
  }
  return row_numbers_.as<int32_t>();
}

/// The last step back: gradients of scaled copies to what they were made of.
void TrainableModel::record_scaled(Tape& tape) const {
  if (scaled_.empty() || !tape.is_recording()) return;
  tape.record([this] {
    const ops::Backend& backend = base_.backend();
    for (const Scaled& scaled : scaled_) {
      if (!scaled.leaf->grad) continue;
      backend.kernels().embed(backend.context(), {scaled.leaf->grad.data(), DType::f32, row_numbers_.as<int32_t>(), 1,
                                                  scaled.leaf->grad.count(), scaled.scale,
                                                  ops::gradient_sum_of(backend, scaled.from), true});
      scaled.leaf->grad = {};
    }
  });
}

/// Brings up to date what is made of trained values.
void TrainableModel::refresh() {
  const ops::Backend& backend = base_.backend();
  for (Rounded& rounded : rounded_) {
    const int64_t rows = rounded.to.dim(0), cols = rounded.to.dim(1);
    backend.kernels().embed(backend.context(), {rounded.from->value.data(), DType::f32, row_numbers(rows), rows, cols,
                                                1, rounded.to.data(), false, dtype_});
  }
  for (nn::DoraParts& parts : parts_) nn::refresh(backend, parts);
  for (const Scaled& scaled : scaled_) {
    const Tensor& from = scaled.from->value;
    backend.kernels().embed(backend.context(), {from.data(), DType::f32, row_numbers(1), 1, from.count(), scaled.scale,
                                                scaled.leaf->value.data()});
  }
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
  NormVariables variables{trained(adapter, prefix + spec.module + ".weight"),
                          trained(adapter, prefix + spec.module + ".bias")};
  const bool is_part = spec.count > 0 && trained(adapter, prefix + spec.module + ".0.weight");
  if (is_part || (variables.bias && spec.scale != 1))
    fail(ErrorCode::unsupported, "training the norm '{}' is not supported", prefix + spec.module);
  if (variables.weight && spec.scale != 1) {
    const Var leaf = autograd::parameter(base_.backend().empty(DType::f32, variables.weight->value.shape()));
    scaled_.push_back({variables.weight, leaf, spec.scale});
    variables.weight = leaf;
  }
  if (!variables.weight && !variables.bias) return;
  if (variables.weight) norm->weight = variables.weight->value;
  if (variables.bias) norm->bias = variables.bias->value;
  norms_[&*norm] = variables;
}

void TrainableModel::bind_layer(adapters::Adapter& adapter, const models::LayerSpec& layer, const std::string& prefix,
                                uint64_t& number) {
  layers_.push_back(models::bind_layer(base_.backend(), base_.spec(), layer, prefix, base_.weights()));
  models::Layer& bound = layers_.back();
  const auto with_number = [&](nn::Linear& linear, const std::string& name) {
    Attached attached = attach(adapter, linear, prefix + name);
    attached.number = ++number;
    return attached;
  };
  const auto attach_attention = [&](models::AttentionWeights& weights, const models::AttentionSpec& spec) {
    return AttentionLinears{with_number(weights.q, spec.q), with_number(weights.k, spec.k),
                            with_number(weights.v, spec.v), with_number(weights.qkv, spec.qkv),
                            with_number(weights.out, spec.out)};
  };
  LayerLinears linears{attach_attention(bound.attention, layer.attention), {}, {}, {}};
  if (layer.has_cross()) linears.cross = attach_attention(bound.cross, layer.cross);
  const models::ExpertsSpec& experts = layer.mlp.experts;
  if (experts.count > 0) linears.router = with_number(bound.router, experts.router);
  for (size_t e = 0; e < bound.mlps.size(); ++e) {
    const std::string at = experts.count > 0 ? experts.prefix + std::to_string(e) + "." : "";
    models::MlpWeights& mlp = bound.mlps[e];
    linears.mlps.push_back({with_number(mlp.gate, at + layer.mlp.gate), with_number(mlp.up, at + layer.mlp.up),
                            with_number(mlp.gate_up, at + layer.mlp.gate_up),
                            with_number(mlp.down, at + layer.mlp.down)});
  }
  linears_.push_back(std::move(linears));
  const std::pair<std::optional<nn::Norm>*, const models::NormSpec*> norms[] = {
      {&bound.attention_norm, &layer.attention_norm},
      {&bound.attention_out_norm, &layer.attention_out_norm},
      {&bound.attention_sum_norm, &layer.attention_sum_norm},
      {&bound.cross_norm, &layer.cross_norm},
      {&bound.mlp_norm, &layer.mlp_norm},
      {&bound.mlp_out_norm, &layer.mlp_out_norm},
      {&bound.mlp_sum_norm, &layer.mlp_sum_norm},
      {&bound.attention.q_norm, &layer.attention.q_norm},
      {&bound.attention.k_norm, &layer.attention.k_norm}};
  for (const auto& [norm, norm_spec] : norms) attach_norm(adapter, *norm, prefix, *norm_spec);
}

void TrainableModel::bind(adapters::Adapter& adapter) {
  const models::ModelSpec& spec = base_.spec();
  const models::Weights& weights = base_.weights();
  const ops::Backend& backend = base_.backend();
  uint64_t number = 0;
  encoder_layers_ = spec.encoder ? spec.encoder->layers.size() : 0;
  layers_.reserve(encoder_layers_ + spec.layers.size());
  for (size_t i = 0; i < encoder_layers_; ++i)
    bind_layer(adapter, spec.encoder->layers[i], spec.encoder->layers_prefix + std::to_string(i) + ".", number);
  for (const models::LayerSpec& layer : spec.layers)
    balance_loss_ = std::max(balance_loss_, layer.mlp.experts.balance_loss);
  for (size_t i = 0; i < spec.layers.size(); ++i)
    bind_layer(adapter, spec.layers[i], spec.layers_prefix + std::to_string(i) + ".", number);
  if (spec.encoder) {
    encoder_norm_ = models::bind_norm(backend, weights, "", spec.encoder->final_norm);
    attach_norm(adapter, encoder_norm_, "", spec.encoder->final_norm);
  }
  for (const models::RelativeBiasSpec& bias : spec.relative_biases) {
    relative_variables_.push_back(trained(adapter, bias.embed + ".weight"));
    relative_biases_.emplace_back(backend.to_host(weights.dense(bias.embed + ".weight")), bias.max_distance,
                                  bias.is_bidirectional);
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

/// Errors: invalid_argument if lengths and ids disagree, or for an id outside the vocabulary.
static void check_ids(const std::vector<int32_t>& ids, const std::vector<int64_t>& lengths, int64_t vocab) {
  const int64_t tokens = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  require(static_cast<size_t>(tokens) == ids.size(), "a batch of {} ids, expected {}", ids.size(), tokens);
  for (const int32_t id : ids) require(id >= 0 && id < vocab, "token id {}: expected 0 to {}", id, vocab - 1);
}

/// The table of one embedding of distances; if that is trained, the first step on the tape, which is the last one back.
TrainableModel::Bias TrainableModel::make_bias(size_t index, const Batch& batch, Tape& tape) const {
  const models::RelativeBiasSpec& spec = base_.spec().relative_biases[index];
  const Var weight = relative_variables_[index];
  const ops::Backend& backend = base_.backend();
  const nn::RelativeBias bias =
      weight ? nn::RelativeBias(backend.to_host(weight->value), spec.max_distance, spec.is_bidirectional)
             : relative_biases_[index];
  int64_t span = 1;
  for (const auto* lengths : {&batch.lengths, &batch.source_lengths})
    for (const int64_t length : *lengths) span = std::max(span, length);
  Tensor table(DType::f32, {bias.heads(), 2 * span - 1});
  bias.fill(span, table.as<float>());
  if (!weight || !tape.is_recording()) return {span, backend.to_device(table)};
  const Var variable = autograd::parameter(backend.to_device(table));
  tape.record([&backend, bias, span, variable, weight] {
    if (!variable->grad) return;
    Tensor gradient(DType::f32, weight->value.shape());
    std::fill_n(gradient.as<float>(), gradient.count(), 0.0f);
    bias.add_gradient(span, backend.to_host(variable->grad).as<float>(), gradient.as<float>());
    ops::add_gradient(backend, weight, backend.to_device(gradient));
  });
  return {span, variable->value, variable};
}

TrainableModel::Pass TrainableModel::make_pass(const Batch& batch, bool is_training, uint64_t seed, float scale) const {
  const auto tokens = static_cast<int64_t>(batch.ids.size());
  check_ids(batch.ids, batch.lengths, base_.vocab_size());
  require(batch.targets.size() == batch.ids.size(), "a batch of {} ids and {} targets, expected as many", tokens,
          batch.targets.size());
  for (const int32_t target : batch.targets)
    require(target < base_.vocab_size(), "target {}: expected at most {}", target, base_.vocab_size() - 1);
  check_ids(batch.source_ids, batch.source_lengths, base_.vocab_size());
  require(batch.source_lengths.size() == (base_.spec().encoder ? batch.lengths.size() : 0),
          "a batch of {} sources and {} sequences, expected {} sources", batch.source_lengths.size(),
          batch.lengths.size(), base_.spec().encoder ? "as many" : "no");
  Pass pass{batch, Tape(is_training), is_training, seed, scale};
  record_scaled(pass.tape);
  for (size_t i = 0; i < relative_biases_.size(); ++i) pass.relative_biases.push_back(make_bias(i, batch, pass.tape));
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

Var TrainableModel::run_embedding(Pass& pass, const std::vector<int32_t>& ids) const {
  const models::ModelSpec& spec = base_.spec();
  const ops::Backend& backend = base_.backend();
  const auto tokens = static_cast<int64_t>(ids.size());
  Var x = autograd::constant(backend.empty(dtype_, {tokens, embed_.dim(1)}));
  const Tensor sent = uploaded(backend, ids);
  backend.kernels().embed(backend.context(), {embed_.data(), embed_.dtype(), sent.as<int32_t>(), tokens, embed_.dim(1),
                                              spec.embed_scale, x->value.data(), false, dtype_});
  record_rows(pass.tape, x, embed_variable_, ids, spec.embed_scale);
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
  return run_norm(pass.tape, embed_norm_, x);
}

Var TrainableModel::run_layers(Pass& pass, size_t begin, size_t end, Var x) const {
  for (size_t i = begin; i < end; ++i) {
    if (has_gradient_checkpointing_ && pass.is_training)
      x = checkpoint(
          pass.tape, x, [this, &pass, i](Tape& tape, const Var& in) { return run_layer(tape, pass, i, in); },
          store_.get());
    else
      x = run_layer(pass.tape, pass, i, x);
  }
  return x;
}

Var TrainableModel::run(Pass& pass) const {
  if (encoder_layers_ > 0)
    pass.encoded = run_norm(pass.tape, encoder_norm_,
                            run_layers(pass, 0, encoder_layers_, run_embedding(pass, pass.batch.source_ids)));
  return run_layers(pass, encoder_layers_, layers_.size(), run_embedding(pass, pass.batch.ids));
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
  return loss + balance_loss_ * pass.load.loss() * static_cast<double>(batch.target_count());
}

double TrainableModel::evaluate(const Batch& batch) {
  refresh();
  Pass pass = make_pass(batch, false, 0, 1);
  return run_loss(pass, run(pass));
}

}  // namespace nibble::train
