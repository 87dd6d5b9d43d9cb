// int8 weights times a few quantized rows of x: rows of w are read once, in their own order.
#pragma once

#include "kernels/cpu/isa/vector.h"

#if defined(NIBBLE_AVX512) || defined(NIBBLE_AVX2)
#define NIBBLE_HAS_INT8_GEMV 1

namespace nibble::kernels::cpu::NIBBLE_ISA {

/// Rows of x up to which w is not worth a panel.
inline constexpr int64_t kInt8GemvRows = 4;

/// Columns that one step takes; x is zero padded to a multiple.
inline constexpr int64_t kInt8Columns = kLanes * StepInt8::kPerDword;

#if defined(NIBBLE_AVX512)
NIBBLE_INLINE __m512i load_int8(const int8_t* w) {
  return _mm512_xor_si512(_mm512_loadu_si512(w), _mm512_set1_epi8(static_cast<char>(StepInt8::kOffset)));
}
NIBBLE_INLINE int32_t sum_of_lanes(__m512i v) {
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
  const __m128i quarter = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  const __m128i pair = _mm_add_epi32(quarter, _mm_shuffle_epi32(quarter, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(pair, _mm_shuffle_epi32(pair, 0xb1)));
}
#else
NIBBLE_INLINE __m256i load_int8(const int8_t* w) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
}
NIBBLE_INLINE int32_t sum_of_lanes(__m256i v) {
  const __m128i quarter = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i pair = _mm_add_epi32(quarter, _mm_shuffle_epi32(quarter, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(pair, _mm_shuffle_epi32(pair, 0xb1)));
}
#endif

/// y (R, M) = R rows of w, `step` apart, times M rows of x, `stride` elements apart; w carries StepInt8::kOffset.
template <int R, int M>
[[gnu::noinline]] static void dot_int8_rows(const int8_t* w, int64_t step, int64_t cols, const StepInt8::Element* x,
                                            int64_t stride, int32_t (&y)[R][M]) {
  VecI sum[R][M];
  NIBBLE_UNROLL
  for (int r = 0; r < R; ++r) NIBBLE_UNROLL
  for (int j = 0; j < M; ++j) sum[r][j] = StepInt8::zero();
  int64_t k = 0;
  for (; k + kInt8Columns <= cols; k += kInt8Columns) NIBBLE_UNROLL
  for (int r = 0; r < R; ++r) {
    const VecI v = load_int8(w + r * step + k);
    prefetch_ahead(w + R * k + r * kInt8Columns);
    NIBBLE_UNROLL
    for (int j = 0; j < M; ++j) sum[r][j] = StepInt8::step(sum[r][j], v, StepInt8::load(x + j * stride + k));
  }
  if (k < cols) NIBBLE_UNROLL
  for (int r = 0; r < R; ++r) {
    int8_t tail[kInt8Columns] = {};
    std::memcpy(tail, w + r * step + k, static_cast<size_t>(cols - k));
    const VecI v = load_int8(tail);
    NIBBLE_UNROLL
    for (int j = 0; j < M; ++j) sum[r][j] = StepInt8::step(sum[r][j], v, StepInt8::load(x + j * stride + k));
  }
  NIBBLE_UNROLL
  for (int r = 0; r < R; ++r) NIBBLE_UNROLL
  for (int j = 0; j < M; ++j) y[r][j] = sum_of_lanes(sum[r][j]);
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA

#endif
