// One forward pass: embedding, the layers, the final norm and the head.
#include "models/decoder.h"

#include <array>

#include "models/layer.h"
#include "models/summary.h"

namespace nibble::models {

float* Workspace::get(size_t slot, int64_t count) {
  if (slot >= buffers_.size()) buffers_.resize(slot + 1);
  if (!buffers_[slot] || buffers_[slot].count() < count) buffers_[slot] = Tensor(DType::f32, {count});
  return buffers_[slot].as<float>();
}

Decoder::Decoder(ModelSpec spec, Json config, std::shared_ptr<ops::Backend> backend, std::unique_ptr<Weights> weights)
    : spec_(std::move(spec)), config_(std::move(config)), backend_(std::move(backend)), weights_(std::move(weights)) {
  summary_ = summarize(spec_, weights_->plan(), weights_->dtype());
  for (const nn::RopeSpec& rope : spec_.ropes) ropes_.emplace_back(rope);
  layers_.reserve(spec_.layers.size());
  for (size_t i = 0; i < spec_.layers.size(); ++i)
    layers_.push_back(bind_layer(spec_, spec_.layers[i], spec_.layers_prefix + std::to_string(i) + ".", *weights_));
  const auto linear = [&](const std::string& path) {
    return path.empty() ? nn::Linear{} : bind_linear(spec_, *weights_, path);
  };
  embed_ = weights_->dense(spec_.embed + ".weight");
  Tensor scale(DType::f32, {1});
  *scale.as<float>() = spec_.embed_scale;
  spec_.embed_scale = *scale.to(weights_->dtype()).to(DType::f32).as<float>();
  project_in_ = linear(spec_.project_in);
  if (!spec_.positions.embed.empty()) positions_ = weights_->dense(spec_.positions.embed + ".weight");
  embed_norm_ = bind_norm(*weights_, "", spec_.embed_norm);
  final_norm_ = bind_norm(*weights_, "", spec_.final_norm);
  project_out_ = linear(spec_.project_out);
  head_ = linear(spec_.head);
}

Decoder::~Decoder() = default;

DType Decoder::cache_dtype() const { return weights_->dtype() == DType::f32 ? DType::f32 : DType::bf16; }

nn::KvCache Decoder::make_cache() const {
  const AttentionSpec& attention = spec_.layers.front().attention;
  return {static_cast<int64_t>(spec_.layers.size()), attention.kv_heads, attention.head_dim, cache_dtype()};
}

void Decoder::fill_angles(Pass& pass) const {
  for (size_t i = 0; i < ropes_.size(); ++i) {
    const int64_t half = ropes_[i].spec().rotary_dim / 2;
    const size_t slot = static_cast<size_t>(Slot::angles) + 2 * i;
    float* cos = pass.workspace.get(slot, pass.tokens * half);
    float* sin = pass.workspace.get(slot + 1, pass.tokens * half);
    pass.cos.push_back(cos);
    pass.sin.push_back(sin);
    for (const SequenceTokens& sequence : pass.sequences) {
      ropes_[i].fill(sequence.cache->length(), sequence.tokens, sequence.length, cos, sin);
      cos += sequence.tokens * half;
      sin += sequence.tokens * half;
    }
  }
}

void Decoder::embed(Pass& pass, const int32_t* ids) const {
  const int64_t m = pass.tokens, width = embed_.dim(1);
  const kernels::Kernels& kernels = backend_->kernels();
  float* embedded = project_in_.rows > 0 ? pass.get(Slot::embedded, m * width) : pass.hidden;
  kernels.embed(backend_->context_for(m * width),
                {embed_.data(), embed_.dtype(), ids, m, width, spec_.embed_scale, embedded});
  if (project_in_.rows > 0) {
    const std::array calls{nn::LinearCall{&project_in_, pass.hidden, spec_.hidden_size}};
    nn::run_linear(*backend_, embedded, m, calls, pass.batch_invariant);
  }
  if (positions_) {
    std::vector<int32_t> rows;
    for (const SequenceTokens& sequence : pass.sequences)
      for (int64_t t = 0; t < sequence.tokens; ++t)
        rows.push_back(static_cast<int32_t>(sequence.cache->length() + t + spec_.positions.offset));
    kernels.embed(backend_->context_for(m * spec_.hidden_size),
                  {positions_.data(), positions_.dtype(), rows.data(), m, spec_.hidden_size, 1, pass.hidden, true});
  }
  if (embed_norm_) nn::run_norm(*backend_, *embed_norm_, pass.hidden, m, pass.hidden);
}

void Decoder::forward(std::span<const SequenceTokens> sequences, const int32_t* ids, Workspace& workspace,
                      float* logits, bool all_logits, bool batch_invariant) const {
  int64_t tokens = 0;
  for (const SequenceTokens& sequence : sequences) tokens += sequence.tokens;
  Pass pass{.backend = *backend_,
            .model = spec_,
            .sequences = sequences,
            .workspace = workspace,
            .tokens = tokens,
            .batch_invariant = batch_invariant,
            .cache_dtype = cache_dtype()};
  pass.hidden = pass.get(Slot::hidden, tokens * spec_.hidden_size);
  pass.attention.resize(sequences.size());
  fill_angles(pass);
  embed(pass, ids);
  for (size_t i = 0; i < layers_.size(); ++i) run_layer(pass, layers_[i], static_cast<int64_t>(i));
  if (logits) run_head(pass, logits, all_logits);
}

void Decoder::run_head(Pass& pass, float* logits, bool all_logits) const {
  const int64_t width = spec_.hidden_size;
  const float* x = pass.hidden;
  int64_t rows = pass.tokens;
  if (!all_logits && rows != static_cast<int64_t>(pass.sequences.size())) {
    rows = static_cast<int64_t>(pass.sequences.size());
    std::vector<int32_t> last;
    int64_t end = 0;
    for (const SequenceTokens& sequence : pass.sequences)
      last.push_back(static_cast<int32_t>((end += sequence.tokens) - 1));
    float* picked = pass.get(Slot::last, rows * width);
    backend_->kernels().embed(backend_->context_for(rows * width),
                              {x, DType::f32, last.data(), rows, width, 1, picked});
    x = picked;
  }
  if (final_norm_) {
    float* normed = pass.get(Slot::normed, rows * width);
    nn::run_norm(*backend_, *final_norm_, x, rows, normed);
    x = normed;
  }
  if (project_out_.rows > 0) {
    float* projected = pass.get(Slot::projected, rows * project_out_.rows);
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
