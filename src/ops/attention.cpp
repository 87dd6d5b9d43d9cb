// Attention keeps q, k, v and its result; scores are computed anew on the way back.
#include "ops/attention.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "ops/gradient.h"

namespace nibble::ops {
namespace {

using autograd::gradient_of;
using autograd::GradientTarget;
using autograd::Tape;
using autograd::Var;

void rotate(const Backend& backend, float* x, int64_t tokens, int64_t heads, int64_t head_dim, const float* cos,
            const float* sin, const RopeAngles& angles) {
  backend.kernels().rope(
      backend.context_for(tokens * heads * head_dim),
      {x, heads * head_dim, cos, sin, tokens, heads, head_dim, angles.rotary_dim, angles.is_interleaved});
}

/// One sequence after the other through the forward entry, whose keys lie by head.
void run_forward(const Backend& backend, const Var& q, const Var& k, const Var& v, std::span<const int64_t> lengths,
                 const AttentionShape& shape, float* out) {
  const int64_t width = shape.heads * shape.head_dim, kv_width = shape.kv_heads * shape.head_dim;
  const int64_t tokens = q->value.count() / width;
  Tensor keys(DType::f32, {tokens * kv_width}), values(DType::f32, {tokens * kv_width});
  std::vector<kernels::AttentionSequence> sequences;
  int64_t first = 0, work = 0;
  const auto append = [&](const Var& x, Tensor& to, int64_t length) {
    float* cache = to.as<float>() + first * kv_width;
    backend.kernels().cache_append(backend.context_for(length * kv_width),
                                   {x->value.as<float>() + first * kv_width, kv_width, cache, DType::f32, length,
                                    length, 0, shape.kv_heads, shape.head_dim});
    return cache;
  };
  for (const int64_t length : lengths) {
    const float* cached_keys = append(k, keys, length);
    const float* cached_values = append(v, values, length);
    sequences.push_back({.q = q->value.as<float>() + first * width,
                         .k = cached_keys,
                         .v = cached_values,
                         .capacity = length,
                         .tokens = length,
                         .past = 0,
                         .out = out + first * width});
    first += length;
    work += length * length * width;
  }
  backend.kernels().attention(backend.context_for(work), {.sequences = sequences.data(),
                                                          .sequence_count = static_cast<int64_t>(sequences.size()),
                                                          .heads = shape.heads,
                                                          .kv_heads = shape.kv_heads,
                                                          .head_dim = shape.head_dim,
                                                          .q_stride = width,
                                                          .kv_dtype = DType::f32,
                                                          .scale = shape.scale,
                                                          .window = shape.window,
                                                          .alibi_slopes = shape.alibi_slopes});
}

void run_backward(const Backend& backend, const Var& q, const Var& k, const Var& v, const Var& y,
                  const std::vector<int64_t>& lengths, const AttentionShape& shape) {
  const int64_t width = shape.heads * shape.head_dim, kv_width = shape.kv_heads * shape.head_dim;
  Tensor dq(DType::f32, q->value.shape()), dk(DType::f32, k->value.shape()), dv(DType::f32, v->value.shape());
  std::vector<kernels::AttentionGradientSequence> sequences;
  int64_t first = 0;
  for (const int64_t length : lengths) {
    const int64_t at = first * width, kv = first * kv_width;
    sequences.push_back({q->value.as<float>() + at, k->value.as<float>() + kv, v->value.as<float>() + kv,
                         y->value.as<float>() + at, y->grad.as<float>() + at, length, dq.as<float>() + at,
                         dk.as<float>() + kv, dv.as<float>() + kv});
    first += length;
  }
  backend.kernels().attention_gradient(
      backend.context(), {sequences.data(), static_cast<int64_t>(sequences.size()), shape.heads, shape.kv_heads,
                          shape.head_dim, shape.scale, shape.window, shape.alibi_slopes});
  add_gradient(backend, q, std::move(dq));
  add_gradient(backend, k, std::move(dk));
  add_gradient(backend, v, std::move(dv));
}

}  // namespace

Var rope(Tape& tape, const Backend& backend, const Var& x, int64_t heads, int64_t head_dim, const RopeAngles& angles) {
  const int64_t tokens = x->value.count() / (heads * head_dim);
  Tensor value(DType::f32, x->value.shape());
  std::memcpy(value.data(), x->value.data(), static_cast<size_t>(value.size_bytes()));
  rotate(backend, value.as<float>(), tokens, heads, head_dim, angles.cos, angles.sin, angles);
  Var y = result_of(tape, std::move(value), {x.get()});
  if (y->requires_grad)
    tape.record([&backend, x, y, tokens, heads, head_dim, angles] {
      // A rotation's gradient is the rotation back.
      const int64_t count = tokens * angles.rotary_dim / 2;
      std::vector<float> back(angles.sin, angles.sin + count);
      for (float& sine : back) sine = -sine;
      rotate(backend, y->grad.as<float>(), tokens, heads, head_dim, angles.cos, back.data(), angles);
      add_gradient(backend, x, std::move(y->grad));
      y->grad = {};
    });
  return y;
}

Var attention(Tape& tape, const Backend& backend, const Var& q, const Var& k, const Var& v,
              std::span<const int64_t> lengths, const AttentionShape& shape) {
  Var y = result_of(tape, Tensor(DType::f32, q->value.shape()), {q.get(), k.get(), v.get()});
  run_forward(backend, q, k, v, lengths, shape, y->value.as<float>());
  if (y->requires_grad)
    tape.record([&backend, q, k, v, y, lengths = std::vector<int64_t>(lengths.begin(), lengths.end()), shape] {
      run_backward(backend, q, k, v, y, lengths, shape);
      y->grad = {};
    });
  return y;
}

SplitHeads split_heads(Tape& tape, const Backend& backend, const Var& x, int64_t groups, int64_t q_per_group,
                       int64_t kv_per_group, int64_t head_dim) {
  const int64_t q_width = q_per_group * head_dim, kv_width = kv_per_group * head_dim, width = q_width + 2 * kv_width;
  const int64_t tokens = x->value.count() / (groups * width);
  const auto part = [&](int64_t part_width) {
    return result_of(tape, Tensor(DType::f32, {tokens, groups * part_width}), {x.get()});
  };
  SplitHeads y{part(q_width), part(kv_width), part(kv_width)};
  backend.kernels().split_heads(backend.context_for(x->value.count()),
                                {x->value.as<float>(), tokens, groups, q_per_group, kv_per_group, head_dim,
                                 y.q->value.as<float>(), y.k->value.as<float>(), y.v->value.as<float>()});
  if (y.q->requires_grad)
    tape.record([&backend, x, y, rows = tokens * groups, q_width, kv_width, width] {
      Tensor dx(DType::f32, x->value.shape());
      const auto copy = [&](const Var& from, int64_t part_width, int64_t at) {
        for (int64_t r = 0; r < rows; ++r)
          std::memcpy(dx.as<float>() + r * width + at, from->grad.as<float>() + r * part_width,
                      static_cast<size_t>(part_width) * sizeof(float));
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
