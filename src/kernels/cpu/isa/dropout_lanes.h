// What dropout leaves of a run of elements: words of the rule in lanes, 16 bits of which choose an element.
#pragma once

#include "kernels/cpu/isa/simd.h"
#include "kernels/dropout_rule.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

struct DropoutRun {
  uint64_t seed;
  float p;
};

#if defined(__AVX512F__)

/// Bit i: whether element 4 * word + i of 32 is kept.
NIBBLE_SIMD uint32_t kept_32(const DropoutRun& run, uint64_t word) {
  const __m512i step = _mm512_set1_epi64(static_cast<int64_t>(0x9e3779b97f4a7c15u));
  const __m512i index =
      _mm512_add_epi64(_mm512_set1_epi64(static_cast<int64_t>(word + 1)), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
  __m512i z = _mm512_add_epi64(_mm512_set1_epi64(static_cast<int64_t>(run.seed)), _mm512_mullo_epi64(index, step));
  z = _mm512_mullo_epi64(_mm512_xor_si512(z, _mm512_srli_epi64(z, 30)),
                         _mm512_set1_epi64(static_cast<int64_t>(0xbf58476d1ce4e5b9u)));
  z = _mm512_mullo_epi64(_mm512_xor_si512(z, _mm512_srli_epi64(z, 27)),
                         _mm512_set1_epi64(static_cast<int64_t>(0x94d049bb133111ebu)));
  z = _mm512_xor_si512(z, _mm512_srli_epi64(z, 31));
  return _mm512_cmpge_epu16_mask(z, _mm512_set1_epi16(static_cast<int16_t>(dropout_limit(run.p))));
}

inline constexpr int64_t kDropoutStep = 32;

NIBBLE_SIMD void drop_step(const DropoutRun& run, uint64_t position, F32 scale, const float* x, float* out) {
  const uint32_t kept = kept_32(run, position / 4);
  store(out, _mm512_maskz_mul_ps(static_cast<__mmask16>(kept), load(x), scale));
  store(out + kLanes, _mm512_maskz_mul_ps(static_cast<__mmask16>(kept >> 16), load(x + kLanes), scale));
}

#elif defined(__AVX2__)

NIBBLE_SIMD __m256i multiply_words(__m256i a, uint64_t b) {
  const __m256i factor = _mm256_set1_epi64x(static_cast<int64_t>(b));
  const __m256i upper = _mm256_set1_epi64x(static_cast<int64_t>(b >> 32));
  const __m256i cross =
      _mm256_add_epi64(_mm256_mul_epu32(_mm256_srli_epi64(a, 32), factor), _mm256_mul_epu32(a, upper));
  return _mm256_add_epi64(_mm256_mul_epu32(a, factor), _mm256_slli_epi64(cross, 32));
}

inline constexpr int64_t kDropoutStep = 16;

NIBBLE_SIMD void drop_step(const DropoutRun& run, uint64_t position, F32 scale, const float* x, float* out) {
  const __m256i index =
      _mm256_add_epi64(_mm256_set1_epi64x(static_cast<int64_t>(position / 4 + 1)), _mm256_setr_epi64x(0, 1, 2, 3));
  __m256i z =
      _mm256_add_epi64(_mm256_set1_epi64x(static_cast<int64_t>(run.seed)), multiply_words(index, 0x9e3779b97f4a7c15u));
  z = multiply_words(_mm256_xor_si256(z, _mm256_srli_epi64(z, 30)), 0xbf58476d1ce4e5b9u);
  z = multiply_words(_mm256_xor_si256(z, _mm256_srli_epi64(z, 27)), 0x94d049bb133111ebu);
  z = _mm256_xor_si256(z, _mm256_srli_epi64(z, 31));
  const __m256i limit = _mm256_set1_epi16(static_cast<int16_t>(dropout_limit(run.p)));
  const __m256i kept = _mm256_cmpeq_epi16(_mm256_max_epu16(z, limit), z);
  const __m256 low = _mm256_castsi256_ps(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(kept)));
  const __m256 high = _mm256_castsi256_ps(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(kept, 1)));
  const F32 first = load(x) * scale, second = load(x + kLanes) * scale;
  store(out, _mm256_and_ps(first, low));
  store(out + kLanes, _mm256_and_ps(second, high));
}

#endif

/// out[i] = keeps(position + i) ? x[i] / (1 - p) : 0; out may be x.
NIBBLE_SIMD void drop_run(const DropoutRun& run, uint64_t position, const float* x, int64_t count, float* out) {
  const float scale = 1 / (1 - run.p);
  int64_t i = 0;
  const auto drop_one = [&] {
    out[i] = dropout_keeps(run.seed, position + static_cast<uint64_t>(i), run.p) ? x[i] * scale : 0;
    ++i;
  };
#if defined(__AVX2__)
  if (dropout_limit(run.p) <= 0xffff) {
    while (i < count && (position + static_cast<uint64_t>(i)) % 4 != 0) drop_one();
    for (; i + kDropoutStep <= count; i += kDropoutStep)
      drop_step(run, position + static_cast<uint64_t>(i), set1(scale), x + i, out + i);
  }
#endif
  while (i < count) drop_one();
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
