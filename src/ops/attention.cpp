// Attention keeps q, k, v, its result and on a GPU each query's sum of exponentials; scores are computed anew on the
// way back.
#include "ops/attention.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "ops/gradient.h"

namespace nibble::ops {
namespace {

using autograd::Tape;
using autograd::Var;

void rotate(const Backend& backend, Tensor& x, int64_t tokens, int64_t heads, int64_t head_dim, const float* cos,
            const float* sin, const RopeAngles& angles) {
  backend.kernels().rope(backend.context_for(tokens * heads * head_dim),
                         {x.data(), heads * head_dim, cos, sin, tokens, heads, head_dim, angles.rotary_dim,
                          angles.is_interleaved, x.dtype()});
}

/// The element `index` of x, whatever its type.
float* at(Tensor& x, int64_t index) { return reinterpret_cast<float*>(x.as<std::byte>() + index * size_of(x.dtype())); }

/// Tokens and keys of each sequence.
struct Lengths {
  std::vector<int64_t> tokens, keys;
};

/// One sequence after the other through the forward entry, whose keys lie by head; lse2 (heads, tokens), or empty.
void run_forward(const Backend& backend, const Var& q, const Var& k, const Var& v, const Lengths& lengths,
                 const AttentionShape& shape, Tensor& out, Tensor& lse2) {
  const int64_t width = shape.heads * shape.head_dim, kv_width = shape.kv_heads * shape.head_dim;
  Tensor keys = empty_like(backend, k->value), values = empty_like(backend, v->value);
  std::vector<kernels::AttentionSequence> sequences;
  int64_t first = 0, first_key = 0, work = 0;
  const auto append = [&](const Var& x, Tensor& to, int64_t length) {
    void* cache = at(to, first_key * kv_width);
    backend.kernels().cache_append(backend.context_for(length * kv_width),
                                   {at(x->value, first_key * kv_width), kv_width, cache, to.dtype(), length, length, 0,
                                    shape.kv_heads, shape.head_dim, nullptr, nullptr, to.dtype()});
    return cache;
  };
  for (size_t i = 0; i < lengths.tokens.size(); ++i) {
    const int64_t length = lengths.tokens[i], count = lengths.keys[i];
    const void* cached_keys = append(k, keys, count);
    const void* cached_values = append(v, values, count);
    sequences.push_back({.q = at(q->value, first * width),
                         .k = cached_keys,
                         .v = cached_values,
                         .capacity = count,
                         .tokens = length,
                         .past = 0,
                         .out = at(out, first * width),
                         .keys = count,
                         .lse2 = lse2 ? lse2.as<float>() + first : nullptr});
    first += length;
    first_key += count;
    work += length * count * width;
  }
  backend.kernels().attention(backend.context_for(work), {.sequences = sequences.data(),
                                                          .sequence_count = static_cast<int64_t>(sequences.size()),
                                                          .heads = shape.heads,
                                                          .kv_heads = shape.kv_heads,
                                                          .head_dim = shape.head_dim,
                                                          .q_stride = width,
                                                          .kv_dtype = keys.dtype(),
                                                          .scale = shape.scale,
                                                          .softcap = shape.softcap,
                                                          .window = shape.window,
                                                          .alibi_slopes = shape.alibi_slopes,
                                                          .alibi_dtype = shape.alibi_dtype,
                                                          .alibi_scale = shape.alibi_scale,
                                                          .is_causal = shape.is_causal,
                                                          .relative_bias = shape.relative_bias,
                                                          .relative_span = shape.relative_span,
                                                          .q_dtype = q->value.dtype(),
                                                          .lse_stride = lse2 ? lse2.dim(1) : 0});
}

void run_backward(const Backend& backend, const Var& q, const Var& k, const Var& v, const Var& y, Tensor& lse2,
                  const Lengths& lengths, const AttentionShape& shape) {
  const int64_t width = shape.heads * shape.head_dim, kv_width = shape.kv_heads * shape.head_dim;
  Tensor dq = empty_like(backend, q->value), dk = empty_like(backend, k->value), dv = empty_like(backend, v->value);
  std::vector<kernels::AttentionGradientSequence> sequences;
  int64_t first = 0, first_key = 0;
  for (size_t i = 0; i < lengths.tokens.size(); ++i) {
    const int64_t query = first * width, kv = first_key * kv_width;
    sequences.push_back({at(q->value, query), at(k->value, kv), at(v->value, kv), at(y->value, query),
                         at(y->grad, query), lengths.tokens[i], at(dq, query), at(dk, kv), at(dv, kv), lengths.keys[i],
                         lse2 ? lse2.as<float>() + first : nullptr});
    first += lengths.tokens[i];
    first_key += lengths.keys[i];
  }
  backend.kernels().attention_gradient(
      backend.context(),
      {sequences.data(), static_cast<int64_t>(sequences.size()), shape.heads, shape.kv_heads, shape.head_dim,
       shape.scale, shape.window, shape.alibi_slopes, q->value.dtype(), shape.softcap, shape.alibi_dtype,
       shape.alibi_scale, shape.is_causal, shape.relative_bias, shape.relative_span, lse2 ? lse2.dim(1) : 0,
       shape.relative_variable ? gradient_sum_of(backend, shape.relative_variable) : nullptr});
  add_gradient(backend, q, std::move(dq));
  add_gradient(backend, k, std::move(dk));
  add_gradient(backend, v, std::move(dv));
}

}  // namespace

Var rope(Tape& tape, const Backend& backend, const Var& x, int64_t heads, int64_t head_dim, const RopeAngles& angles) {
  const int64_t tokens = x->value.count() / (heads * head_dim);
  Var y = result_of(tape, std::move(x->value), {x.get()});
  rotate(backend, y->value, tokens, heads, head_dim, angles.cos, angles.sin, angles);
  if (y->requires_grad)
    tape.record([&backend, x, y, tokens, heads, head_dim, angles] {
      // A rotation's gradient is the rotation back.
      rotate(backend, y->grad, tokens, heads, head_dim, angles.cos, angles.minus_sin, angles);
      add_gradient(backend, x, std::move(y->grad));
      y->grad = {};
    });
  return y;
}

Var attention(Tape& tape, const Backend& backend, const Var& q, const Var& k, const Var& v,
              std::span<const int64_t> lengths, const AttentionShape& shape, std::span<const int64_t> key_lengths) {
  if (key_lengths.empty()) key_lengths = lengths;
  require(key_lengths.size() == lengths.size() && (!shape.is_causal || key_lengths.data() == lengths.data()),
          "attention: found {} sequences of keys, expected those of the {} queries", key_lengths.size(),
          lengths.size());
  Var y = result_of(tape, empty_like(backend, q->value), {q.get(), k.get(), v.get()});
  Lengths both{{lengths.begin(), lengths.end()}, {key_lengths.begin(), key_lengths.end()}};
  Tensor lse2;  // what a GPU's way back would compute anew
  if (y->requires_grad && backend.cuda())
    lse2 = backend.empty(DType::f32, {shape.heads, q->value.count() / (shape.heads * shape.head_dim)});
  run_forward(backend, q, k, v, both, shape, y->value, lse2);
  if (y->requires_grad)
    tape.record([&backend, q, k, v, y, lse2 = std::move(lse2), both = std::move(both), shape]() mutable {
      run_backward(backend, q, k, v, y, lse2, both, shape);
      y->grad = {};
    });
  return y;
}

SplitHeads split_heads(Tape& tape, const Backend& backend, const Var& x, int64_t groups, int64_t q_per_group,
                       int64_t kv_per_group, int64_t head_dim) {
  const int64_t q_width = q_per_group * head_dim, kv_width = kv_per_group * head_dim, width = q_width + 2 * kv_width;
  const int64_t tokens = x->value.count() / (groups * width);
  const auto part = [&](int64_t part_width) {
    return result_of(tape, backend.empty(x->value.dtype(), {tokens, groups * part_width}), {x.get()});
  };
  SplitHeads y{part(q_width), part(kv_width), part(kv_width)};
  backend.kernels().split_heads(backend.context_for(x->value.count()),
                                {x->value.data(), tokens, groups, q_per_group, kv_per_group, head_dim,
                                 y.q->value.data(), y.k->value.data(), y.v->value.data(), x->value.dtype()});
  if (y.q->requires_grad)
    tape.record([&backend, x, y, rows = tokens * groups, q_width, kv_width, width] {
      Tensor dx = empty_like(backend, x->value);
      const int64_t size = size_of(dx.dtype());
      const auto copy = [&](const Var& from, int64_t part_width, int64_t at) {
        backend.copy_rows(dx.as<std::byte>() + at * size, width * size, from->grad.data(), part_width * size,
                          part_width * size, rows);
        from->grad = {};
      };
      copy(y.q, q_width, 0);
      copy(y.k, kv_width, q_width);
      copy(y.v, kv_width, q_width + kv_width);
      add_gradient(backend, x, std::move(dx));
    });
  return y;
}

}  // namespace nibble::ops
