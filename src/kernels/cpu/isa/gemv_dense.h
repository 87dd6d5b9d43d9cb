// Dense weights times a few rows of x: rows of w are read once, in their own order.
#pragma once

#include "kernels/cpu/isa/panel_gemm.h"

#if defined(NIBBLE_AVX512) || defined(NIBBLE_AVX2)
#define NIBBLE_HAS_DENSE_GEMV 1

namespace nibble::kernels::cpu::NIBBLE_ISA {

/// Rows of x up to which w is not worth a panel.
inline constexpr int64_t kDenseGemvRows = 4;

// A lane type says how kElements of w and of x are loaded and multiplied; x is packed as Element, zero padded.

template <class T>
struct WideLanes {
  using Weight = T;
  using Element = float;
  static constexpr int64_t kElements = kLanes;
#if defined(NIBBLE_AVX512)
  NIBBLE_INLINE static __m512 load(const float* w) { return _mm512_loadu_ps(w); }
  NIBBLE_INLINE static __m512 load(const bf16_t* w) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w))), 16));
  }
  NIBBLE_INLINE static __m512 load(const f16_t* w) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
  }
#else
  NIBBLE_INLINE static __m256 load(const float* w) { return _mm256_loadu_ps(w); }
  NIBBLE_INLINE static __m256 load(const bf16_t* w) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w))), 16));
  }
  NIBBLE_INLINE static __m256 load(const f16_t* w) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
  }
#endif
  NIBBLE_INLINE static VecF dot(VecF sum, VecF w, const float* x) { return StepF32::step(sum, w, StepF32::load(x)); }
};

#if defined(NIBBLE_AVX512)
struct PairLanes {
  using Weight = bf16_t;
  using Element = uint16_t;
  static constexpr int64_t kElements = 2 * kLanes;
  NIBBLE_INLINE static __m512i load(const bf16_t* w) { return _mm512_loadu_si512(w); }
  NIBBLE_INLINE static __m512 dot(__m512 sum, __m512i w, const uint16_t* x) {
    return StepBf16::step(sum, w, _mm512_loadu_si512(x));
  }
};
#endif

template <class Lanes>
struct GemvDense {
  using Weight = typename Lanes::Weight;
  using Element = typename Lanes::Element;

  const MatmulInput* input;
  RowUnits<MatmulDenseJob> units;
  const Element* x;  // (m, stride)
  int64_t stride;

  /// R rows of w, `step` elements apart, with M rows of x.
  template <int R, int M>
  [[gnu::noinline]] static void dot_rows(const Weight* w, int64_t step, int64_t cols, const Element* x, int64_t stride,
                                         float (&y)[R][M]) {
    VecF sum[R][M];
    NIBBLE_UNROLL
    for (int r = 0; r < R; ++r) NIBBLE_UNROLL
    for (int j = 0; j < M; ++j) sum[r][j] = StepF32::zero();
    int64_t k = 0;
    for (; k + Lanes::kElements <= cols; k += Lanes::kElements) NIBBLE_UNROLL
    for (int r = 0; r < R; ++r) {
      const auto v = Lanes::load(w + r * step + k);
      prefetch_ahead(w + R * k + r * Lanes::kElements);
      NIBBLE_UNROLL
      for (int j = 0; j < M; ++j) sum[r][j] = Lanes::dot(sum[r][j], v, x + j * stride + k);
    }
    if (k < cols) NIBBLE_UNROLL
    for (int r = 0; r < R; ++r) {
      Weight tail[Lanes::kElements] = {};
      std::memcpy(tail, w + r * step + k, static_cast<size_t>(cols - k) * sizeof(Weight));
      const auto v = Lanes::load(tail);
      NIBBLE_UNROLL
      for (int j = 0; j < M; ++j) sum[r][j] = Lanes::dot(sum[r][j], v, x + j * stride + k);
    }
    sum_rows(sum, y);
  }

  /// R rows of w, `step` apart, with M rows of x, from i on.
  template <int R, int M>
  void run_rows(const MatmulDenseJob& job, int64_t n, int64_t step, int64_t i) const {
    float y[R][M];
    dot_rows<R, M>(static_cast<const Weight*>(job.w) + n * input->cols, step * input->cols, input->cols, x + i * stride,
                   stride, y);
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < M; ++j) put(job.out, i + j, n + r * step, y[r][j]);
  }

  static void task(void* context, int64_t index, int) {
    const auto& gemv = *static_cast<const GemvDense*>(context);
    int64_t begin, end;
    const MatmulDenseJob& job = gemv.units.find(index, begin, end);
    const int64_t step = (end - begin) / 4;  // four long streams
    for_few_rows(gemv.input->m, [&](auto rows, int64_t i) {
      constexpr int M = decltype(rows)::kRows;
      for (int64_t n = 0; n < step; ++n) gemv.template run_rows<4, M>(job, begin + n, step, i);
      for (int64_t n = begin + 4 * step; n < end; ++n) gemv.template run_rows<1, M>(job, n, 1, i);
    });
  }
};

template <class Lanes>
static void run_gemv_dense(const Context& context, const MatmulInput& input, Rounding rounding,
                           const MatmulDenseJob* jobs, int64_t count) {
  using Element = typename Lanes::Element;
  const int64_t stride = (input.cols + 63) / 64 * 64;
  auto* x =
      static_cast<Element*>(scratch(Scratch::shared_input, input.m * stride * static_cast<int64_t>(sizeof(Element))));
  for (int64_t i = 0; i < input.m; ++i) {
    round_row(input.x_f32() + i * input.cols, input.cols, rounding, x + i * stride);
    std::memset(x + i * stride + input.cols, 0, static_cast<size_t>(stride - input.cols) * sizeof(Element));
  }
  const auto row_bytes = input.cols * static_cast<int64_t>(sizeof(typename Lanes::Weight));
  GemvDense<Lanes> gemv{&input, share_rows(context, jobs, count, row_bytes, 8), x, stride};
  run(context, gemv.units.total(), GemvDense<Lanes>::task, &gemv);
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA

#endif
