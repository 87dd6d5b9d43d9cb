// Attention of a layer: projections, rotation, the cache, scores, and the projection back.
#include <array>

#include "models/layer.h"
#include "nn/kv_cache.h"

namespace nibble::models {
namespace {

/// (tokens, heads, head_dim) inside rows of `stride`.
struct Heads {
  nn::Values values;
  int64_t stride;
};

struct Projected {
  Heads q, k, v;
};

Projected project_fused(Pass& pass, const AttentionSpec& spec, const AttentionWeights& weights, nn::ConstValues x) {
  const int64_t m = pass.tokens, q_width = spec.heads * spec.head_dim, kv_width = spec.kv_heads * spec.head_dim;
  const int64_t width = q_width + 2 * kv_width;
  const nn::Values all = pass.get_values(Slot::qkv, m * width);
  const std::array calls{nn::LinearCall{&weights.qkv, all, width}};
  run_projections(pass, x, m, calls);
  if (spec.qkv_groups == 1 && !weights.q_norm && !weights.k_norm)
    return {{all, width}, {all.at(q_width), width}, {all.at(q_width + kv_width), width}};
  const nn::Values q = pass.get_values(Slot::query, m * q_width);
  const nn::Values k = pass.get_values(Slot::key, m * kv_width);
  const nn::Values v = pass.get_values(Slot::value, m * kv_width);
  pass.backend.kernels().split_heads(
      pass.backend.context_for(m * width),
      {all.data, m, spec.qkv_groups, spec.heads / spec.qkv_groups, spec.kv_heads / spec.qkv_groups, spec.head_dim,
       q.data, k.data, v.data, all.dtype});
  return {{q, q_width}, {k, kv_width}, {v, kv_width}};
}

Projected project(Pass& pass, const AttentionSpec& spec, const AttentionWeights& weights, nn::ConstValues x) {
  if (weights.qkv.rows > 0) return project_fused(pass, spec, weights, x);
  const int64_t m = pass.tokens, q_width = spec.heads * spec.head_dim, kv_width = spec.kv_heads * spec.head_dim;
  const nn::Values q = pass.get_values(Slot::query, m * q_width);
  const nn::Values k = pass.get_values(Slot::key, m * kv_width);
  const nn::Values v = pass.get_values(Slot::value, m * kv_width);
  const std::array calls{nn::LinearCall{&weights.q, q, q_width}, nn::LinearCall{&weights.k, k, kv_width},
                         nn::LinearCall{&weights.v, v, kv_width}};
  run_projections(pass, x, m, calls);
  return {{q, q_width}, {k, kv_width}, {v, kv_width}};
}

/// A norm over head_dim runs on each head, one over all heads on each token; of several, each runs on its head.
void norm_heads(Pass& pass, const std::optional<nn::Norm>& norm, nn::Values x, int64_t width) {
  if (norm) nn::run_norm(pass.backend, *norm, x, pass.tokens * width / norm->cols(), x);
}

void rotate(Pass& pass, const AttentionSpec& spec, Heads x, int64_t heads) {
  const nn::RopeSpec& rope = pass.model.ropes[*spec.rope];
  pass.backend.kernels().rope(pass.backend.context_for(pass.tokens * heads * spec.head_dim),
                              {x.values.data, x.stride, pass.cos[*spec.rope], pass.sin[*spec.rope], pass.tokens, heads,
                               spec.head_dim, rope.rotary_dim, rope.interleaved, x.values.dtype});
}

void append(Pass& pass, const AttentionSpec& spec, const SequenceTokens& sequence, nn::ConstValues x, int64_t stride,
            void* cache) {
  pass.backend.kernels().cache_append(pass.backend.context_for(sequence.tokens * spec.kv_heads * spec.head_dim),
                                      {.x = x.data,
                                       .stride = stride,
                                       .cache = cache,
                                       .dtype = sequence.cache->dtype(),
                                       .capacity = sequence.cache->capacity(),
                                       .tokens = sequence.tokens,
                                       .past = sequence.cache->length(),
                                       .kv_heads = spec.kv_heads,
                                       .head_dim = spec.head_dim,
                                       .x_dtype = x.dtype});
}

kernels::RotateAppendArgs rotation_of(const Pass& pass, const AttentionSpec& spec, const Projected& x) {
  const nn::RopeSpec* rope = spec.rope ? &pass.model.ropes[*spec.rope] : nullptr;
  return {.q = x.q.values.data,
          .k = x.k.values.data,
          .v = x.v.values.data,
          .q_stride = x.q.stride,
          .k_stride = x.k.stride,
          .v_stride = x.v.stride,
          .cos = rope ? pass.cos[*spec.rope] : nullptr,
          .sin = rope ? pass.sin[*spec.rope] : nullptr,
          .rotary_dim = rope ? rope->rotary_dim : 0,
          .interleaved = rope && rope->interleaved,
          .heads = spec.heads,
          .kv_heads = spec.kv_heads,
          .head_dim = spec.head_dim,
          .sequences = pass.attention.data(),
          .sequence_count = static_cast<int64_t>(pass.attention.size()),
          .kv_dtype = pass.cache_dtype,
          .x_dtype = x.q.values.dtype};
}

/// Rotates q and k and appends k and v to the caches, in one go where the backend can.
void rotate_and_append(Pass& pass, const AttentionSpec& spec, int64_t index, const Projected& x) {
  const kernels::Kernels& kernels = pass.backend.kernels();
  if (kernels.rotate_append) return kernels.rotate_append(pass.backend.context(), rotation_of(pass, spec, x));
  if (spec.rope) {
    rotate(pass, spec, x.q, spec.heads);
    rotate(pass, spec, x.k, spec.kv_heads);
  }
  int64_t row = 0;
  for (const SequenceTokens& sequence : pass.sequences) {
    append(pass, spec, sequence, x.k.values.at(row * x.k.stride), x.k.stride, sequence.cache->keys(index));
    append(pass, spec, sequence, x.v.values.at(row * x.v.stride), x.v.stride, sequence.cache->values(index));
    row += sequence.tokens;
  }
}

/// What pass.attention says.
kernels::AttentionArgs scores_of(const Pass& pass, const AttentionSpec& spec, int64_t q_stride) {
  const RelativeBiasTable bias = spec.relative_bias ? pass.relative_bias[*spec.relative_bias] : RelativeBiasTable{};
  return {.sequences = pass.attention.data(),
          .sequence_count = static_cast<int64_t>(pass.attention.size()),
          .heads = spec.heads,
          .kv_heads = spec.kv_heads,
          .head_dim = spec.head_dim,
          .q_stride = q_stride,
          .kv_dtype = pass.cache_dtype,
          .scale = spec.scale,
          .softcap = spec.softcap,
          .window = spec.window,
          .alibi_slopes = spec.has_alibi ? pass.alibi_slopes : nullptr,
          .alibi_dtype = pass.model.alibi.dtype,
          .alibi_scale = pass.model.alibi.scale,
          .is_causal = spec.is_causal,
          .relative_bias = bias.values,
          .relative_span = bias.span,
          .q_dtype = pass.activations};
}

/// Fills the cache and softmax(q k^T) v into `attended` (tokens, heads, head_dim).
void attend(Pass& pass, const AttentionSpec& spec, int64_t index, const Projected& x, nn::Values attended) {
  const int64_t q_width = spec.heads * spec.head_dim;
  int64_t row = 0, work = 0;
  for (size_t s = 0; s < pass.sequences.size(); ++s) {
    const SequenceTokens& sequence = pass.sequences[s];
    nn::KvCache& cache = *sequence.cache;
    pass.attention[s] = {.q = x.q.values.at(row * x.q.stride).data,
                         .k = cache.keys(index),
                         .v = cache.values(index),
                         .capacity = cache.capacity(),
                         .tokens = sequence.tokens,
                         .past = pass.longest > 0 ? pass.longest - 1 : cache.length(),
                         .out = attended.at(row * q_width).data,
                         .keys = cache.length() + sequence.tokens,
                         .past_at = pass.longest > 0 ? pass.pasts + s : nullptr,
                         .k_scales = cache.key_scales(index),
                         .v_scales = cache.value_scales(index)};
    row += sequence.tokens;
    work += sequence.tokens * (cache.length() + sequence.tokens) * q_width;
  }
  const kernels::Kernels& kernels = pass.backend.kernels();
  const kernels::AttentionArgs scores = scores_of(pass, spec, x.q.stride);
  if (kernels.rotate_attention && kernels.rotate_attention(pass.backend.context(), rotation_of(pass, spec, x), scores))
    return;
  rotate_and_append(pass, spec, index, x);
  kernels.attention(pass.backend.context_for(work), scores);
}

}  // namespace

void run_attention(Pass& pass, const Layer& layer, int64_t index, nn::ConstValues x, float* sum, bool accumulate) {
  const AttentionSpec& spec = layer.spec->attention;
  const int64_t q_width = spec.heads * spec.head_dim;
  const Projected projected = project(pass, spec, layer.attention, x);
  norm_heads(pass, layer.attention.q_norm, projected.q.values, q_width);
  norm_heads(pass, layer.attention.k_norm, projected.k.values, spec.kv_heads * spec.head_dim);
  const nn::Values attended = pass.get_values(Slot::attended, pass.tokens * q_width);
  attend(pass, spec, index, projected, attended);
  const std::array out{nn::LinearCall{&layer.attention.out, sum, pass.model.hidden_size, accumulate}};
  nn::run_linear(pass.backend, attended, pass.tokens, out, pass.batch_invariant);
}

void run_cross_attention(Pass& pass, const Layer& layer, int64_t index, nn::ConstValues x, float* sum,
                         bool accumulate) {
  const AttentionSpec& spec = layer.spec->cross;
  const int64_t q_width = spec.heads * spec.head_dim;
  const nn::Values q = pass.get_values(Slot::query, pass.tokens * q_width);
  const std::array query{nn::LinearCall{&layer.cross.q, q, q_width}};
  nn::run_linear(pass.backend, x, pass.tokens, query, pass.batch_invariant);
  const nn::Values attended = pass.get_values(Slot::attended, pass.tokens * q_width);
  int64_t row = 0, work = 0;
  for (size_t s = 0; s < pass.sequences.size(); ++s) {
    const SequenceTokens& sequence = pass.sequences[s];
    nn::KvCache& source = *sequence.source;
    pass.attention[s] = {.q = q.at(row * q_width).data,
                         .k = source.keys(index),
                         .v = source.values(index),
                         .capacity = source.capacity(),
                         .tokens = sequence.tokens,
                         .past = 0,
                         .out = attended.at(row * q_width).data,
                         .keys = source.length()};
    row += sequence.tokens;
    work += sequence.tokens * source.length() * q_width;
  }
  pass.backend.kernels().attention(pass.backend.context_for(work), scores_of(pass, spec, q_width));
  const std::array out{nn::LinearCall{&layer.cross.out, sum, pass.model.hidden_size, accumulate}};
  nn::run_linear(pass.backend, attended, pass.tokens, out, pass.batch_invariant);
}

void fill_source(Pass& pass, const Layer& layer, int64_t index, nn::ConstValues encoded, nn::KvCache& source) {
  const AttentionSpec& spec = layer.spec->cross;
  const int64_t width = spec.kv_heads * spec.head_dim;
  const nn::Values k = pass.get_values(Slot::key, pass.tokens * width);
  const nn::Values v = pass.get_values(Slot::value, pass.tokens * width);
  const std::array calls{nn::LinearCall{&layer.cross.k, k, width}, nn::LinearCall{&layer.cross.v, v, width}};
  nn::run_linear(pass.backend, encoded, pass.tokens, calls, pass.batch_invariant);
  const SequenceTokens all{&source, pass.tokens, pass.tokens};
  append(pass, spec, all, k, width, source.keys(index));
  append(pass, spec, all, v, width, source.values(index));
}

}  // namespace nibble::models
