// One forward pass: embedding, the layers, the final norm and the head.
#include "models/decoder.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/error.h"
#include "models/module_tree.h"
#include "models/summary.h"

namespace nibble::models {
namespace {

/// What the buffers of a workspace hold.
enum Slot : size_t { kHidden, kNormed, kQuery, kKey, kValue, kAttended, kGateUp, kActivated, kLast, kCos, kSin };

nn::Norm make_norm(const Weights& weights, const std::string& prefix, const NormSpec& spec) {
  const std::string path = prefix + spec.module;
  nn::Norm norm;
  norm.kind = spec.kind;
  norm.weight = weights.dense(path + ".weight").to(DType::f32);
  if (weights.contains(path + ".bias")) norm.bias = weights.dense(path + ".bias").to(DType::f32);
  norm.eps = static_cast<float>(spec.eps);
  norm.weight_offset = spec.weight_offset;
  return norm;
}

nn::Linear make_linear(const ModelSpec& spec, const Weights& weights, const std::string& path) {
  const ModuleSpec* module = find_module(spec, path);
  if (!module || module->kind != ModuleKind::linear) fail(ErrorCode::internal, "no linear module '{}'", path);
  nn::Linear layer;
  layer.weight = weights.get(path + ".weight");
  if (weights.contains(path + ".bias")) layer.bias = weights.dense(path + ".bias").to(DType::f32);
  layer.rows = module->parameters[0].shape[0];
  layer.cols = module->parameters[0].shape[1];
  return layer;
}

}  // namespace

struct Decoder::Layer {
  const LayerSpec* spec;
  nn::Norm attention_norm, mlp_norm;
  std::optional<nn::Norm> q_norm, k_norm;
  nn::Linear q, k, v, out;
  nn::Linear gate, up, down;
};

/// The state of one forward pass.
struct Decoder::Pass {
  std::span<const SequenceTokens> sequences;
  Workspace& workspace;
  int64_t tokens;
  bool batch_invariant;
  float* hidden;                                      // (tokens, hidden_size): the residual stream
  float* normed;                                      // (tokens, hidden_size)
  std::vector<const float*> cos, sin;                 // per rope: (tokens, rotary_dim / 2)
  std::vector<kernels::AttentionSequence> attention;  // per sequence
};

float* Workspace::get(size_t slot, int64_t count) {
  if (slot >= buffers_.size()) buffers_.resize(slot + 1);
  if (!buffers_[slot] || buffers_[slot].count() < count) buffers_[slot] = Tensor(DType::f32, {count});
  return buffers_[slot].as<float>();
}

Decoder::Decoder(ModelSpec spec, Json config, std::shared_ptr<ops::Backend> backend, std::unique_ptr<Weights> weights)
    : spec_(std::move(spec)), config_(std::move(config)), backend_(std::move(backend)), weights_(std::move(weights)) {
  summary_ = summarize(spec_, weights_->plan(), weights_->dtype());
  for (const nn::RopeSpec& rope : spec_.ropes) ropes_.emplace_back(rope);
  build_layers();
}

Decoder::~Decoder() = default;

void Decoder::build_layers() {
  layers_.reserve(spec_.layers.size());
  for (size_t i = 0; i < spec_.layers.size(); ++i) {
    const LayerSpec& spec = spec_.layers[i];
    const std::string prefix = spec_.layers_prefix + std::to_string(i) + ".";
    const auto linear = [&](const std::string& name) { return make_linear(spec_, *weights_, prefix + name); };
    const auto norm = [&](const NormSpec& n) { return make_norm(*weights_, prefix, n); };
    Layer layer{.spec = &spec,
                .attention_norm = norm(spec.attention_norm),
                .mlp_norm = norm(spec.mlp_norm),
                .q_norm = {},
                .k_norm = {},
                .q = linear(spec.attention.q),
                .k = linear(spec.attention.k),
                .v = linear(spec.attention.v),
                .out = linear(spec.attention.out),
                .gate = linear(spec.mlp.gate),
                .up = linear(spec.mlp.up),
                .down = linear(spec.mlp.down)};
    if (spec.attention.q_norm) layer.q_norm = norm(spec.attention.q_norm);
    if (spec.attention.k_norm) layer.k_norm = norm(spec.attention.k_norm);
    layers_.push_back(std::move(layer));
  }
  final_norm_ = make_norm(*weights_, "", spec_.final_norm);
  head_ = make_linear(spec_, *weights_, spec_.head);
  embed_ = weights_->dense(spec_.embed + ".weight");
}

DType Decoder::cache_dtype() const { return weights_->dtype() == DType::f32 ? DType::f32 : DType::bf16; }

nn::KvCache Decoder::make_cache() const {
  const AttentionSpec& attention = spec_.layers.front().attention;
  return {static_cast<int64_t>(spec_.layers.size()), attention.kv_heads, attention.head_dim, cache_dtype()};
}

void Decoder::fill_angles(Pass& pass) const {
  for (size_t i = 0; i < ropes_.size(); ++i) {
    const int64_t half = ropes_[i].spec().rotary_dim / 2;
    float* cos = pass.workspace.get(kCos + 2 * i, pass.tokens * half);
    float* sin = pass.workspace.get(kSin + 2 * i, pass.tokens * half);
    pass.cos.push_back(cos);
    pass.sin.push_back(sin);
    for (const SequenceTokens& sequence : pass.sequences) {
      ropes_[i].fill(sequence.cache->length(), sequence.tokens, sequence.length, cos, sin);
      cos += sequence.tokens * half;
      sin += sequence.tokens * half;
    }
  }
}

void Decoder::forward(std::span<const SequenceTokens> sequences, const int32_t* ids, Workspace& workspace,
                      float* logits, bool all_logits, bool batch_invariant) const {
  int64_t tokens = 0;
  for (const SequenceTokens& sequence : sequences) tokens += sequence.tokens;
  const int64_t width = spec_.hidden_size;
  Pass pass{sequences,
            workspace,
            tokens,
            batch_invariant,
            workspace.get(kHidden, tokens * width),
            workspace.get(kNormed, tokens * width),
            {},
            {},
            {}};
  pass.attention.resize(sequences.size());
  backend_->kernels().embed(backend_->context_for(tokens * width),
                            {embed_.data(), embed_.dtype(), ids, tokens, width, spec_.embed_scale, pass.hidden});
  fill_angles(pass);
  for (size_t i = 0; i < layers_.size(); ++i) {
    run_attention(pass, layers_[i], i);
    run_mlp(pass, layers_[i]);
  }
  if (logits) run_head(pass, logits, all_logits);
}

void Decoder::run_attention(Pass& pass, const Layer& layer, size_t index) const {
  const kernels::Kernels& kernels = backend_->kernels();
  const AttentionSpec& spec = layer.spec->attention;
  const int64_t q_width = spec.heads * spec.head_dim, kv_width = spec.kv_heads * spec.head_dim, m = pass.tokens;
  float* q = pass.workspace.get(kQuery, m * q_width);
  float* k = pass.workspace.get(kKey, m * kv_width);
  float* v = pass.workspace.get(kValue, m * kv_width);
  float* attended = pass.workspace.get(kAttended, m * q_width);

  nn::run_norm(*backend_, layer.attention_norm, pass.hidden, m, pass.normed);
  const std::array calls{nn::LinearCall{&layer.q, q, q_width}, nn::LinearCall{&layer.k, k, kv_width},
                         nn::LinearCall{&layer.v, v, kv_width}};
  nn::run_linear(*backend_, pass.normed, m, calls, pass.batch_invariant);
  if (layer.q_norm) nn::run_norm(*backend_, *layer.q_norm, q, m * spec.heads, q);
  if (layer.k_norm) nn::run_norm(*backend_, *layer.k_norm, k, m * spec.kv_heads, k);

  const nn::RopeSpec& rope = ropes_[spec.rope].spec();
  const auto rotate = [&](float* x, int64_t heads, int64_t width) {
    kernels.rope(backend_->context_for(m * width), {x, width, pass.cos[spec.rope], pass.sin[spec.rope], m, heads,
                                                    spec.head_dim, rope.rotary_dim, rope.interleaved});
  };
  rotate(q, spec.heads, q_width);
  rotate(k, spec.kv_heads, kv_width);

  int64_t row = 0, work = 0;
  for (size_t s = 0; s < pass.sequences.size(); ++s) {
    const SequenceTokens& sequence = pass.sequences[s];
    nn::KvCache& cache = *sequence.cache;
    const int64_t past = cache.length(), capacity = cache.capacity();
    const auto layer_index = static_cast<int64_t>(index);
    const auto append = [&](const float* x, void* to) {
      kernels.cache_append(backend_->context_for(sequence.tokens * kv_width),
                           {x + row * kv_width, kv_width, to, cache.dtype(), capacity, sequence.tokens, past,
                            spec.kv_heads, spec.head_dim});
    };
    append(k, cache.keys(layer_index));
    append(v, cache.values(layer_index));
    pass.attention[s] = {
        q + row * q_width,       cache.keys(layer_index), cache.values(layer_index), capacity, sequence.tokens, past,
        attended + row * q_width};
    row += sequence.tokens;
    work += sequence.tokens * (past + sequence.tokens) * q_width;
  }
  kernels.attention(backend_->context_for(work), {.sequences = pass.attention.data(),
                                                  .sequence_count = static_cast<int64_t>(pass.attention.size()),
                                                  .heads = spec.heads,
                                                  .kv_heads = spec.kv_heads,
                                                  .head_dim = spec.head_dim,
                                                  .q_stride = q_width,
                                                  .kv_dtype = cache_dtype(),
                                                  .scale = spec.scale,
                                                  .softcap = spec.softcap,
                                                  .window = spec.window});
  const std::array out{nn::LinearCall{&layer.out, pass.hidden, spec_.hidden_size, true}};
  nn::run_linear(*backend_, attended, m, out, pass.batch_invariant);
}

void Decoder::run_mlp(Pass& pass, const Layer& layer) const {
  const MlpSpec& spec = layer.spec->mlp;
  const int64_t width = spec.intermediate_size, m = pass.tokens;
  float* gate = pass.workspace.get(kGateUp, 2 * m * width);  // (tokens, [gate | up])
  float* activated = pass.workspace.get(kActivated, m * width);
  nn::run_norm(*backend_, layer.mlp_norm, pass.hidden, m, pass.normed);
  const std::array calls{nn::LinearCall{&layer.gate, gate, 2 * width},
                         nn::LinearCall{&layer.up, gate + width, 2 * width}};
  nn::run_linear(*backend_, pass.normed, m, calls, pass.batch_invariant);
  backend_->kernels().activate(backend_->context_for(m * width),
                               {gate, gate + width, 2 * width, m, width, spec.activation, activated});
  const std::array down{nn::LinearCall{&layer.down, pass.hidden, spec_.hidden_size, true}};
  nn::run_linear(*backend_, activated, m, down, pass.batch_invariant);
}

void Decoder::run_head(Pass& pass, float* logits, bool all_logits) const {
  const int64_t width = spec_.hidden_size;
  const float* x = pass.hidden;
  int64_t rows = pass.tokens;
  if (!all_logits && rows != static_cast<int64_t>(pass.sequences.size())) {
    rows = static_cast<int64_t>(pass.sequences.size());
    float* last = pass.workspace.get(kLast, rows * width);
    const float* end = pass.hidden;
    for (int64_t s = 0; s < rows; ++s) {
      end += pass.sequences[static_cast<size_t>(s)].tokens * width;
      std::memcpy(last + s * width, end - width, static_cast<size_t>(width) * sizeof(float));
    }
    x = last;
  }
  nn::run_norm(*backend_, final_norm_, x, rows, pass.normed);
  const std::array head{nn::LinearCall{&head_, logits, spec_.vocab_size}};
  nn::run_linear(*backend_, pass.normed, rows, head, pass.batch_invariant);
}

}  // namespace nibble::models
