// The two products of attention over tiles that fit the second cache: fp32 register tiles, any row count.
#pragma once

#include "kernels/cpu/isa/math.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

#if defined(__AVX512F__)
inline constexpr int kTileVectors = 4;
#else
inline constexpr int kTileVectors = 2;
#endif

/// c (R, V vectors) = (or += if add) a (R, depth) . b (depth, V vectors).
template <int R, int V, typename T>
NIBBLE_SIMD void multiply_tile(const float* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t depth, float* c,
                               int64_t c_stride, bool add) {
  F32 sums[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) sums[r][v] = add ? load(c + r * c_stride + v * kLanes) : set1(0);
  for (int64_t k = 0; k < depth; ++k) {
    F32 row[V];
    for (int v = 0; v < V; ++v) row[v] = load(b + k * b_stride + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const F32 x = set1(a[r * a_stride + k]);
      for (int v = 0; v < V; ++v) sums[r][v] = fma(x, row[v], sums[r][v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(c + r * c_stride + v * kLanes, sums[r][v]);
}

template <int V, typename T>
void multiply_panel(const float* a, int64_t a_stride, int64_t rows, const T* b, int64_t b_stride, int64_t depth,
                    float* c, int64_t c_stride, bool add) {
  int64_t r = 0;
  for (; r + 6 <= rows; r += 6)
    multiply_tile<6, V>(a + r * a_stride, a_stride, b, b_stride, depth, c + r * c_stride, c_stride, add);
  for (; r + 3 <= rows; r += 3)
    multiply_tile<3, V>(a + r * a_stride, a_stride, b, b_stride, depth, c + r * c_stride, c_stride, add);
  for (; r < rows; ++r)
    multiply_tile<1, V>(a + r * a_stride, a_stride, b, b_stride, depth, c + r * c_stride, c_stride, add);
}

/// c (rows, cols) = (or += if add) a (rows, depth) . b (depth, cols); cols is a multiple of kLanes.
template <typename T>
NIBBLE_SIMD void multiply(const float* a, int64_t a_stride, int64_t rows, const T* b, int64_t b_stride, int64_t depth,
                          int64_t cols, float* c, int64_t c_stride, bool add) {
  int64_t n = 0;
  for (; n + kTileVectors * kLanes <= cols; n += kTileVectors * kLanes)
    multiply_panel<kTileVectors>(a, a_stride, rows, b + n, b_stride, depth, c + n, c_stride, add);
  for (; n < cols; n += kLanes) multiply_panel<1>(a, a_stride, rows, b + n, b_stride, depth, c + n, c_stride, add);
}

/// `count` rows of `dim` elements, `x_stride` apart, as floats, each padded with zeros to `stride`.
template <typename T>
NIBBLE_SIMD void unpack_rows_strided(const T* x, int64_t x_stride, int64_t count, int64_t dim, float* out,
                                     int64_t stride) {
  for (int64_t i = 0; i < count; ++i) {
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) store(out + i * stride + d, load(x + i * x_stride + d));
    for (; d < stride; ++d) out[i * stride + d] = d < dim ? to_float(x[i * x_stride + d]) : 0;
  }
}
template <typename T>
NIBBLE_SIMD void unpack_rows(const T* x, int64_t count, int64_t dim, float* out, int64_t stride) {
  unpack_rows_strided(x, dim, count, dim, out, stride);
}

/// scores of keys first .. += the bias of their distances to the query at `position`.
NIBBLE_SIMD void add_relative_bias(float* scores, int64_t count, const AttentionArgs& args, int64_t head,
                                   int64_t position, int64_t first) {
  const int64_t span = args.relative_span;
  const float* bias = args.relative_bias + head * (2 * span - 1) + first - position + span - 1;
  const int64_t end = min_of(count, span + position - first);  // later keys are masked, and past the table
  for (int64_t i = 0; i < end; i += kLanes) {
    const int64_t n = min_of(kLanes, end - i);
    store(scores + i, load(scores + i) + (n == kLanes ? load(bias + i) : load_some(bias + i, n)));
  }
}

NIBBLE_SIMD F32 rounded_bf16(F32 x) {
  bf16_t row[kLanes];
  store(row, x);
  return load(row);
}

/// softcap, then biases, on `count` (a multiple of kLanes) scores of keys first .. for the query at `position`
NIBBLE_SIMD void adjust_scores(float* scores, int64_t count, const AttentionArgs& args, int64_t head, int64_t position,
                               int64_t first) {
  if (args.softcap > 0) {
    const F32 cap = set1(args.softcap);
    for (int64_t i = 0; i < count; i += kLanes) store(scores + i, cap * tanh(load(scores + i) / cap));
  }
  if (args.relative_bias) add_relative_bias(scores, count, args, head, position, first);
  if (!args.alibi_slopes) return;
  const F32 slope = set1(args.alibi_slopes[head]), scale = set1(args.alibi_scale);
  for (int64_t i = 0; i < count; i += kLanes) {
    F32 bias = lane_numbers() + set1(static_cast<float>(first + i));
    bias = args.alibi_dtype == DType::bf16 ? rounded_bf16(slope * rounded_bf16(bias)) : slope * bias;
    store(scores + i, fma(scale, bias, load(scores + i)));
  }
}

NIBBLE_SIMD float largest_score(const float* scores, int64_t count) {
  F32 largest = load(scores);
  for (int64_t i = kLanes; i < count; i += kLanes) largest = max(largest, load(scores + i));
  return reduce_max(largest);
}

/// scores[i] becomes e^(scores[i] - shift); the sum of them.
NIBBLE_SIMD float exponentiate(float* scores, int64_t count, float shift) {
  F32 sum = set1(0);
  const F32 offset = set1(shift);
  for (int64_t i = 0; i < count; i += kLanes) {
    const F32 p = exp(load(scores + i) - offset);
    store(scores + i, p);
    sum = sum + p;
  }
  return reduce_add(sum);
}

NIBBLE_SIMD void scale_row(float* x, int64_t count, float factor) {
  for (int64_t i = 0; i < count; i += kLanes) store(x + i, load(x + i) * set1(factor));
}

NIBBLE_SIMD int64_t padded(int64_t n) { return ceil_of(n, kLanes) * kLanes; }

// The three parts, each in its own file.

/// Query tokens that one prefill item takes, and the item: tokens of block `block` of one kv head.
int64_t prefill_block_tokens(const AttentionArgs& args);
void attend_prefill(const AttentionArgs& args, const AttentionSequence& sequence, int64_t kv_head, int64_t block);

/// Keys that one decode item takes. Its result is, per head of the group, head_dim sums, then the largest score and the
/// sum of exponentials.
inline constexpr int64_t kDecodeKeys = 256;
NIBBLE_SIMD int64_t partial_size(const AttentionArgs& args) {
  return (args.heads / args.kv_heads) * (padded(args.head_dim) + 2);
}
NIBBLE_SIMD int64_t first_key(const AttentionArgs& args, int64_t position) {
  return args.window > 0 ? max_of(0, position + 1 - args.window) : 0;
}
/// One past the last key that the query at `position` sees.
NIBBLE_SIMD int64_t end_key(const AttentionArgs& args, const AttentionSequence& sequence, int64_t position) {
  return args.is_causal ? position + 1 : sequence.keys;
}
NIBBLE_SIMD int64_t decode_chunks(const AttentionArgs& args, const AttentionSequence& sequence) {
  return ceil_of(end_key(args, sequence, sequence.past) - first_key(args, sequence.past), kDecodeKeys);
}
void attend_decode(const AttentionArgs& args, const AttentionSequence& sequence, int64_t kv_head, int64_t chunk,
                   float* partial);
void merge_decode(const AttentionArgs& args, const AttentionSequence& sequence, int64_t kv_head, const float* partials);

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
