// The scale of one block: its largest magnitude and what the blockwise formats make of special values.
#pragma once

#include "kernels/cpu/isa/simd.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

struct BlockScale {
  float absmax;     // over all elements but NaN; denormal counts as zero
  float inverse;    // 1 / absmax; NaN for a zero block
  bool is_special;  // zero, or NaN or Inf inside: x * inverse may be NaN
};

// largest_bits: the largest bit pattern of |x|, ordered like the numbers, NaN above Inf.

NIBBLE_SIMD uint32_t largest_bits_one_by_one(const float* x, int64_t count, uint32_t largest) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x[i]) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}
template <typename T>
NIBBLE_SIMD uint16_t largest_bits_one_by_one(const T* x, int64_t count, uint16_t largest) {
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t bits = x[i].bits & 0x7fffu;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

#if defined(__AVX2__)

NIBBLE_SIMD uint32_t largest_dword(__m256i x) {
  __m128i m = _mm_max_epu32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1))));
}
NIBBLE_SIMD uint16_t largest_word(__m256i x) {  // there is an instruction for the smallest
  const __m128i m = _mm_max_epu16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  const int smallest = _mm_cvtsi128_si32(_mm_minpos_epu16(_mm_xor_si128(m, _mm_set1_epi32(-1))));
  return static_cast<uint16_t>(~smallest);
}

#if defined(__AVX512F__)
using Integers = __m512i;
NIBBLE_SIMD Integers load_integers(const void* p) { return _mm512_loadu_si512(p); }
NIBBLE_SIMD Integers and_dwords(Integers x, int mask) { return _mm512_and_si512(x, _mm512_set1_epi32(mask)); }
NIBBLE_SIMD Integers max_dwords(Integers a, Integers b) { return _mm512_max_epu32(a, b); }
NIBBLE_SIMD Integers max_words(Integers a, Integers b) { return _mm512_max_epu16(a, b); }
NIBBLE_SIMD __m256i fold_dwords(Integers x) {
  return _mm256_max_epu32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
}
NIBBLE_SIMD __m256i fold_words(Integers x) {
  return _mm256_max_epu16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
}
#else
using Integers = __m256i;
NIBBLE_SIMD Integers load_integers(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
NIBBLE_SIMD Integers and_dwords(Integers x, int mask) { return _mm256_and_si256(x, _mm256_set1_epi32(mask)); }
NIBBLE_SIMD Integers max_dwords(Integers a, Integers b) { return _mm256_max_epu32(a, b); }
NIBBLE_SIMD Integers max_words(Integers a, Integers b) { return _mm256_max_epu16(a, b); }
NIBBLE_SIMD __m256i fold_dwords(Integers x) { return x; }
NIBBLE_SIMD __m256i fold_words(Integers x) { return x; }
#endif

NIBBLE_SIMD uint32_t largest_bits(const float* x, int64_t count) {
  constexpr int64_t step = sizeof(Integers) / sizeof(float);
  Integers even = {}, odd = {};
  int64_t i = 0;
  for (; i + 2 * step <= count; i += 2 * step) {
    even = max_dwords(even, and_dwords(load_integers(x + i), 0x7fffffff));
    odd = max_dwords(odd, and_dwords(load_integers(x + i + step), 0x7fffffff));
  }
  return largest_bits_one_by_one(x + i, count - i, largest_dword(fold_dwords(max_dwords(even, odd))));
}
template <typename T>
NIBBLE_SIMD uint32_t largest_bits(const T* x, int64_t count) {
  constexpr int64_t step = sizeof(Integers) / sizeof(T);
  Integers largest = {};
  int64_t i = 0;
  for (; i + step <= count; i += step) largest = max_words(largest, and_dwords(load_integers(x + i), 0x7fff7fff));
  const uint16_t bits = largest_bits_one_by_one(x + i, count - i, largest_word(fold_words(largest)));
  return __builtin_bit_cast(uint32_t, to_float(T{bits}));
}

#else

NIBBLE_SIMD uint32_t largest_bits(const float* x, int64_t count) { return largest_bits_one_by_one(x, count, 0); }
template <typename T>
NIBBLE_SIMD uint32_t largest_bits(const T* x, int64_t count) {
  return __builtin_bit_cast(uint32_t, to_float(T{largest_bits_one_by_one(x, count, uint16_t{0})}));
}

#endif

template <typename T>
NIBBLE_SIMD BlockScale block_scale(const T* x, int64_t count) {
  const uint32_t largest = largest_bits(x, count);
  BlockScale scale{__builtin_bit_cast(float, largest), 0, largest >= 0x7f800000u};
  if (largest > 0x7f800000u) {  // NaN somewhere: the slow way around it
    scale.absmax = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float size = __builtin_fabsf(to_float(x[i]));
      if (size > scale.absmax) scale.absmax = size;
    }
  }
  if (scale.absmax < 0x1p-126f) return {0, __builtin_nanf(""), true};
  scale.inverse = 1.0f / scale.absmax;
  return scale;
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
