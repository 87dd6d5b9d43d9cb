// One forward pass: embedding, the layers, the final norm and the head.
#include "models/decoder.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "models/layer.h"
#include "models/summary.h"

namespace nibble::models {

Decoder::Decoder(ModelSpec spec, Json config, std::shared_ptr<ops::Backend> backend, std::unique_ptr<Weights> weights)
    : spec_(std::move(spec)),
      config_(std::move(config)),
      backend_(std::move(backend)),
      weights_(std::move(weights)),
      cache_dtype_(weights_->dtype() == DType::f32 ? DType::f32 : DType::bf16) {
  summary_ = summarize(spec_, weights_->plan(), weights_->dtype());
  for (const nn::RopeSpec& rope : spec_.ropes) ropes_.emplace_back(rope);
  for (const RelativeBiasSpec& bias : spec_.relative_biases)
    relative_biases_.emplace_back(backend_->to_host(weights_->dense(bias.embed + ".weight")), bias.max_distance,
                                  bias.is_bidirectional);
  bind(nullptr);
  Tensor scale(DType::f32, {1});
  *scale.as<float>() = spec_.embed_scale;
  spec_.embed_scale = *scale.to(weights_->dtype()).to(DType::f32).as<float>();
  if (!spec_.alibi.slopes.empty()) {
    alibi_ = backend_->empty(DType::f32, {static_cast<int64_t>(spec_.alibi.slopes.size())});
    backend_->upload(alibi_.data(), spec_.alibi.slopes.data(), alibi_.size_bytes());
  }
}

Decoder::~Decoder() = default;

void Decoder::bind(const Updates* updates) {
  const auto bind_layers = [&](const std::vector<LayerSpec>& layers, const std::string& prefix) {
    std::vector<Layer> result;
    for (size_t i = 0; i < layers.size(); ++i)
      result.push_back(bind_layer(*backend_, spec_, layers[i], prefix + std::to_string(i) + ".", *weights_, updates));
    return result;
  };
  const auto linear = [&](const std::string& path) {
    return path.empty() ? nn::Linear{} : bind_linear(*backend_, spec_, *weights_, path, updates);
  };
  const auto norm = [&](const NormSpec& spec) { return bind_norm(*backend_, *weights_, "", spec, updates); };
  const auto embedding = [&](const std::string& path) {
    return path.empty() ? Tensor{} : parameter_of(*weights_, updates, path + ".weight");
  };
  auto layers = bind_layers(spec_.layers, spec_.layers_prefix);
  auto encoder_layers =
      spec_.encoder ? bind_layers(spec_.encoder->layers, spec_.encoder->layers_prefix) : std::vector<Layer>{};
  auto project_in = linear(spec_.project_in), project_out = linear(spec_.project_out), head = linear(spec_.head);
  auto encoder_norm = spec_.encoder ? norm(spec_.encoder->final_norm) : std::nullopt;
  auto embed_norm = norm(spec_.embed_norm), final_norm = norm(spec_.final_norm);
  auto embed = embedding(spec_.embed), positions = embedding(spec_.positions.embed);
  // Nothing fails from here on.
  layers_ = std::move(layers);
  encoder_layers_ = std::move(encoder_layers);
  project_in_ = std::move(project_in);
  project_out_ = std::move(project_out);
  head_ = std::move(head);
  encoder_norm_ = std::move(encoder_norm);
  embed_norm_ = std::move(embed_norm);
  final_norm_ = std::move(final_norm);
  embed_ = std::move(embed);
  positions_ = std::move(positions);
}

void Decoder::set_updates(std::shared_ptr<const Updates> updates) {
  if (updates && backend_->cuda()) {
    auto there = std::make_shared<Updates>();
    int64_t width = 0;
    for (const auto& [module, update] : updates->layers)
      width = std::max({width, update.a.dim(0), update.row_scale ? update.b.dim(0) : 0});
    const Tensor room = backend_->empty(DType::f32, {nn::LowRank::kRoomRows * width});
    for (const auto& [module, update] : updates->layers)
      there->layers[module] = {backend_->to_device(update.a), backend_->to_device(update.b),
                               backend_->to_device(update.row_scale), room};
    for (const auto& [name, value] : updates->parameters) there->parameters[name] = backend_->to_device(value);
    there->weights = updates->weights;
    updates = std::move(there);
  }
  bind(updates.get());
  updates_ = std::move(updates);  // layers no longer point into those before
}

DType Decoder::activations() const {
  return backend_->cuda() && weights_->dtype() != DType::f32 ? DType::bf16 : DType::f32;
}

nn::KvCache Decoder::make_cache() const {
  const AttentionSpec& attention = spec_.layers.front().attention;
  return {*backend_, static_cast<int64_t>(spec_.layers.size()), attention.kv_heads, attention.head_dim, cache_dtype()};
}

Pass Decoder::prepare(std::span<const SequenceTokens> sequences, const int32_t* ids, Workspace& workspace,
                      bool batch_invariant, int64_t longest) const {
  int64_t tokens = 0;
  for (const SequenceTokens& sequence : sequences) tokens += sequence.tokens;
  const auto count = static_cast<int64_t>(sequences.size());
  int64_t size_bytes = 2 * Workspace::input_bytes(tokens, 4) + 2 * Workspace::input_bytes(count, 4);
  for (const nn::Rope& rope : ropes_) size_bytes += 2 * Workspace::input_bytes(tokens * rope.spec().rotary_dim / 2, 4);
  workspace.begin_inputs(size_bytes);
  Pass pass{.backend = *backend_,
            .model = spec_,
            .sequences = sequences,
            .workspace = workspace,
            .tokens = tokens,
            .batch_invariant = batch_invariant,
            .cache_dtype = cache_dtype(),
            .activations = activations(),
            .longest = longest,
            .alibi_slopes = alibi_ ? alibi_.as<float>() : nullptr};
  pass.attention.resize(sequences.size());
  const auto token_ids = workspace.add_input<int32_t>(tokens), positions = workspace.add_input<int32_t>(tokens),
             last = workspace.add_input<int32_t>(count), pasts = workspace.add_input<int32_t>(count);
  std::copy_n(ids, tokens, token_ids.host);
  pass.ids = token_ids.device;
  pass.positions = positions.device;
  pass.last = last.device;
  pass.pasts = pasts.device;
  int64_t row = 0, span = longest;
  for (int64_t s = 0; s < count; ++s) {
    const SequenceTokens& sequence = sequences[static_cast<size_t>(s)];
    const int64_t past = sequence.cache->length();
    span = std::max(span, past + sequence.tokens);
    pasts.host[s] = static_cast<int32_t>(past);
    for (int64_t t = 0; t < sequence.tokens; ++t)
      positions.host[row++] = static_cast<int32_t>(past + t + spec_.positions.offset);
    last.host[s] = static_cast<int32_t>(row - 1);
  }
  for (size_t i = 0; i < relative_biases_.size(); ++i)
    pass.relative_bias.push_back(workspace.get_bias(i, relative_biases_[i], span));
  for (const nn::Rope& rope : ropes_) {
    const int64_t half = rope.spec().rotary_dim / 2;
    const auto cos = workspace.add_input<float>(tokens * half), sin = workspace.add_input<float>(tokens * half);
    pass.cos.push_back(cos.device);
    pass.sin.push_back(sin.device);
    int64_t done = 0;
    for (const SequenceTokens& sequence : sequences) {
      rope.fill(sequence.cache->length(), sequence.tokens, sequence.length, cos.host + done, sin.host + done);
      done += sequence.tokens * half;
    }
  }
  return pass;
}

void Decoder::embed(Pass& pass) const {
  const int64_t m = pass.tokens, width = embed_.dim(1);
  const kernels::Kernels& kernels = backend_->kernels();
  float* embedded = project_in_.rows > 0 ? pass.get(Slot::embedded, m * width) : pass.hidden;
  kernels.embed(backend_->context_for(m * width),
                {embed_.data(), embed_.dtype(), pass.ids, m, width, spec_.embed_scale, embedded});
  if (project_in_.rows > 0) {
    const std::array calls{nn::LinearCall{&project_in_, pass.hidden, spec_.hidden_size}};
    nn::run_linear(*backend_, embedded, m, calls, pass.batch_invariant);
  }
  if (positions_)
    kernels.embed(backend_->context_for(m * spec_.hidden_size),
                  {positions_.data(), positions_.dtype(), pass.positions, m, spec_.hidden_size, 1, pass.hidden, true});
  if (embed_norm_) nn::run_norm(*backend_, *embed_norm_, pass.hidden, m, pass.hidden);
}

void Decoder::forward(std::span<const SequenceTokens> sequences, const int32_t* ids, Workspace& workspace,
                      float* logits, bool all_logits, bool batch_invariant) const {
  Pass pass = prepare(sequences, ids, workspace, batch_invariant);
  workspace.send_inputs(false);
  if (!backend_->cuda()) return run(pass, logits, all_logits);
  const int64_t count = (all_logits ? pass.tokens : static_cast<int64_t>(sequences.size())) * spec_.vocab_size;
  float* on_device = logits ? pass.get(Slot::logits, count) : nullptr;
  run(pass, on_device, all_logits);
  backend_->cuda()->check();
  if (logits) backend_->download(logits, on_device, count * static_cast<int64_t>(sizeof(float)));
}

void Decoder::run(Pass& pass, float* logits, bool all_logits) const {
  pass.hidden = pass.get(Slot::hidden, pass.tokens * spec_.hidden_size);
  embed(pass);
  for (size_t i = 0; i < layers_.size(); ++i) run_layer(pass, layers_[i], static_cast<int64_t>(i));
  if (logits) run_head(pass, logits, all_logits);
}

void Decoder::run_head(Pass& pass, float* logits, bool all_logits) const {
  const int64_t width = spec_.hidden_size;
  nn::ConstValues x = pass.hidden;
  int64_t rows = pass.tokens;
  if (!all_logits && rows != static_cast<int64_t>(pass.sequences.size())) {
    rows = static_cast<int64_t>(pass.sequences.size());
    float* picked = pass.get(Slot::last, rows * width);
    backend_->kernels().embed(backend_->context_for(rows * width),
                              {pass.hidden, DType::f32, pass.last, rows, width, 1, picked});
    x = picked;
  }
  if (final_norm_) {
    const nn::Values normed = pass.get_values(Slot::normed, rows * width);
    nn::run_norm(*backend_, *final_norm_, x, rows, normed);
    x = normed;
  }
  if (project_out_.rows > 0) {
    const nn::Values projected = pass.get_values(Slot::projected, rows * project_out_.rows);
    const std::array calls{nn::LinearCall{&project_out_, projected, project_out_.rows}};
    nn::run_linear(*backend_, x, rows, calls, pass.batch_invariant);
    x = projected;
  }
  const std::array head{nn::LinearCall{&head_, logits, spec_.vocab_size}};
  nn::run_linear(*backend_, x, rows, head, pass.batch_invariant);
  if (spec_.logit_softcap > 0)
    backend_->kernels().softcap(backend_->context_for(rows * spec_.vocab_size),
                                {logits, rows * spec_.vocab_size, spec_.logit_softcap});
}

}  // namespace nibble::models
