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
NIBBLE_SIMD Integers upper_words(Integers x) { return _mm512_srli_epi32(x, 16); }
NIBBLE_SIMD F32 as_floats(Integers x) { return _mm512_castsi512_ps(x); }
NIBBLE_SIMD F32 larger_bits(F32 a, F32 b) {
  return as_floats(_mm512_max_epu32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}
/// The floats whose bits are the lanes of x, by the type that the second argument points to.
NIBBLE_SIMD F32 widened(F32 x, const float*) { return x; }
NIBBLE_SIMD F32 widened(F32 x, const bf16_t*) { return as_floats(_mm512_slli_epi32(_mm512_castps_si512(x), 16)); }
NIBBLE_SIMD F32 widened(F32 x, const f16_t*) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_castps_si512(x))); }
/// True if a lane is no normal number.
NIBBLE_SIMD bool has_special_scale(F32 x) {
  const __m512i excess = _mm512_sub_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x00800000));
  return _mm512_cmpge_epu32_mask(excess, _mm512_set1_epi32(0x7f000000)) != 0;
}
#else
using Integers = __m256i;
NIBBLE_SIMD Integers load_integers(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
NIBBLE_SIMD Integers and_dwords(Integers x, int mask) { return _mm256_and_si256(x, _mm256_set1_epi32(mask)); }
NIBBLE_SIMD Integers max_dwords(Integers a, Integers b) { return _mm256_max_epu32(a, b); }
NIBBLE_SIMD Integers max_words(Integers a, Integers b) { return _mm256_max_epu16(a, b); }
NIBBLE_SIMD __m256i fold_dwords(Integers x) { return x; }
NIBBLE_SIMD __m256i fold_words(Integers x) { return x; }
NIBBLE_SIMD Integers upper_words(Integers x) { return _mm256_srli_epi32(x, 16); }
NIBBLE_SIMD F32 as_floats(Integers x) { return _mm256_castsi256_ps(x); }
NIBBLE_SIMD F32 larger_bits(F32 a, F32 b) {
  return as_floats(_mm256_max_epu32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}
NIBBLE_SIMD F32 widened(F32 x, const float*) { return x; }
NIBBLE_SIMD F32 widened(F32 x, const bf16_t*) { return as_floats(_mm256_slli_epi32(_mm256_castps_si256(x), 16)); }
NIBBLE_SIMD F32 widened(F32 x, const f16_t*) {
  const __m256i bits = _mm256_castps_si256(x);
  return _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1)));
}
NIBBLE_SIMD bool has_special_scale(F32 x) {  // no sign bits here: signed comparisons will do
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i small = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x00800000), bits);
  const __m256i large = _mm256_cmpgt_epi32(bits, _mm256_set1_epi32(0x7f7fffff));
  return !_mm256_testz_si256(_mm256_or_si256(small, large), _mm256_set1_epi32(-1));
}
#endif

/// The largest of all values taken so far.
struct LargestBits {
  Integers even = {}, odd = {};
};
NIBBLE_SIMD void take_64(LargestBits& largest, const float* x) {
  constexpr int64_t step = sizeof(Integers) / sizeof(float);
  NIBBLE_UNROLL
  for (int64_t i = 0; i < 64; i += 2 * step) {
    largest.even = max_dwords(largest.even, and_dwords(load_integers(x + i), 0x7fffffff));
    largest.odd = max_dwords(largest.odd, and_dwords(load_integers(x + i + step), 0x7fffffff));
  }
}
template <typename T>
NIBBLE_SIMD void take_64(LargestBits& largest, const T* x) {
  constexpr int64_t step = sizeof(Integers) / sizeof(T);
  NIBBLE_UNROLL
  for (int64_t i = 0; i < 64; i += 2 * step) {
    largest.even = max_words(largest.even, and_dwords(load_integers(x + i), 0x7fff7fff));
    largest.odd = max_words(largest.odd, and_dwords(load_integers(x + i + step), 0x7fff7fff));
  }
}
/// With the `count` values at x, fewer than 64, as the last ones.
NIBBLE_SIMD uint32_t finish(const LargestBits& largest, const float* x, int64_t count) {
  return largest_bits_one_by_one(x, count, largest_dword(fold_dwords(max_dwords(largest.even, largest.odd))));
}
template <typename T>
NIBBLE_SIMD uint32_t finish(const LargestBits& largest, const T* x, int64_t count) {
  const uint16_t bits =
      largest_bits_one_by_one(x, count, largest_word(fold_words(max_words(largest.even, largest.odd))));
  return __builtin_bit_cast(uint32_t, to_float(T{bits}));
}
/// Lane by lane, of kCount values.
template <int64_t kCount>
NIBBLE_SIMD F32 largest_lanes(const float* x) {
  constexpr int64_t step = sizeof(Integers) / sizeof(float);
  Integers largest = and_dwords(load_integers(x), 0x7fffffff);
  NIBBLE_UNROLL
  for (int64_t i = step; i < kCount; i += step)
    largest = max_dwords(largest, and_dwords(load_integers(x + i), 0x7fffffff));
  return as_floats(largest);
}
/// The same for words, the larger one of each lane's two in its lower half.
template <int64_t kCount, typename T>
NIBBLE_SIMD F32 largest_lanes(const T* x) {
  constexpr int64_t step = sizeof(Integers) / sizeof(T);
  Integers largest = and_dwords(load_integers(x), 0x7fff7fff);
  NIBBLE_UNROLL
  for (int64_t i = step; i < kCount; i += step)
    largest = max_words(largest, and_dwords(load_integers(x + i), 0x7fff7fff));
  return as_floats(and_dwords(max_words(largest, upper_words(largest)), 0xffff));
}

/// kLanes blocks at once, whose scales are `absmax` and `inverse`. False, with nothing written, if one is special.
template <int64_t kBlock, typename T>
NIBBLE_SIMD bool scales_of_lanes(const T* x, float* absmax, float* inverse) {
  F32 blocks[kLanes];
  NIBBLE_UNROLL
  for (int64_t i = 0; i < kLanes; ++i) blocks[i] = largest_lanes<kBlock>(x + i * kBlock);
  const F32 largest = widened(fold_rows(blocks, [](F32 a, F32 b) { return larger_bits(a, b); }), x);
  if (has_special_scale(largest)) return false;
  store(absmax, largest);
  store(inverse, set1(1.0f) / largest);
  return true;
}

#else

template <int64_t, typename T>
NIBBLE_SIMD bool scales_of_lanes(const T*, float*, float*) {
  return false;
}

struct LargestBits {
  uint32_t bits = 0;  // as wide as the type
};
NIBBLE_SIMD uint32_t finish(const LargestBits& largest, const float* x, int64_t count) {
  return largest_bits_one_by_one(x, count, largest.bits);
}
template <typename T>
NIBBLE_SIMD uint32_t finish(const LargestBits& largest, const T* x, int64_t count) {
  const uint16_t bits = largest_bits_one_by_one(x, count, static_cast<uint16_t>(largest.bits));
  return __builtin_bit_cast(uint32_t, to_float(T{bits}));
}
NIBBLE_SIMD void take_64(LargestBits& largest, const float* x) {
  largest.bits = largest_bits_one_by_one(x, 64, largest.bits);
}
template <typename T>
NIBBLE_SIMD void take_64(LargestBits& largest, const T* x) {
  largest.bits = largest_bits_one_by_one(x, 64, static_cast<uint16_t>(largest.bits));
}

#endif

template <typename T>
NIBBLE_SIMD uint32_t largest_bits(const T* x, int64_t count) {
  LargestBits largest;
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) take_64(largest, x + i);
  return finish(largest, x + i, count - i);
}

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
