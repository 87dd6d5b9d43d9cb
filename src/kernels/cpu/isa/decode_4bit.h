// Decoding a run of codes of one block to the elements of a panel.
#pragma once

#include "kernels/cpu/isa/vector.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

NIBBLE_INLINE int code_at(const uint8_t* packed, int64_t i) { return (packed[i >> 1] >> (i & 1 ? 0 : 4)) & 15; }

/// The 16 values of a block: code book * absmax in fp32, rounded once.
[[maybe_unused]] static void block_values(const float* code_book, float absmax, Rounding rounding, float* values) {
  for (int c = 0; c < 16; ++c) values[c] = code_book[c] * absmax;
  if (rounding == Rounding::bf16) round_row(values, 16, rounding, values);
}

/// out[i] = value of code first + i, for one block.
[[maybe_unused]] static void decode_run(const uint8_t* packed, int64_t first, int64_t count, const float* code_book,
                                        float absmax, Rounding rounding, float* out) {
  alignas(64) float values[16];
  block_values(code_book, absmax, rounding, values);
  int64_t i = 0;
  if (first % 2 == 0) {
    const uint8_t* p = packed + first / 2;
#if defined(NIBBLE_AVX512)
    const __m512 table = _mm512_load_ps(values);
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    for (; i + 32 <= count; i += 32) {
      const __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i / 2)));
      const __m512 even = _mm512_permutexvar_ps(_mm512_srli_epi32(code, 4), table);
      const __m512 odd = _mm512_permutexvar_ps(code, table);
      _mm512_storeu_ps(out + i, _mm512_permutex2var_ps(even, low, odd));
      _mm512_storeu_ps(out + i + 16, _mm512_permutex2var_ps(even, high, odd));
    }
#elif defined(NIBBLE_AVX2)
    const __m256 table0 = _mm256_load_ps(values), table1 = _mm256_load_ps(values + 8);
    for (; i + 16 <= count; i += 16) {
      const __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + i / 2)));
      const __m256i even_code = _mm256_srli_epi32(code, 4);
      const __m256 even =
          _mm256_blendv_ps(_mm256_permutevar8x32_ps(table0, even_code), _mm256_permutevar8x32_ps(table1, even_code),
                           _mm256_castsi256_ps(_mm256_slli_epi32(code, 24)));
      const __m256 odd =
          _mm256_blendv_ps(_mm256_permutevar8x32_ps(table0, code), _mm256_permutevar8x32_ps(table1, code),
                           _mm256_castsi256_ps(_mm256_slli_epi32(code, 28)));
      const __m256 low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
      _mm256_storeu_ps(out + i, _mm256_permute2f128_ps(low, high, 0x20));
      _mm256_storeu_ps(out + i + 8, _mm256_permute2f128_ps(low, high, 0x31));
    }
#else
    for (; i + 2 <= count; i += 2) {
      out[i] = values[p[i / 2] >> 4];
      out[i + 1] = values[p[i / 2] & 15];
    }
#endif
  }
  for (; i < count; ++i) out[i] = values[code_at(packed, first + i)];
}

#if defined(NIBBLE_AVX512)
/// The same in bf16.
[[maybe_unused]] static void decode_run(const uint8_t* packed, int64_t first, int64_t count, const float* code_book,
                                        float absmax, Rounding, uint16_t* out) {
  const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(code_book), _mm512_set1_ps(absmax));
  const auto half = (__m256i)_mm512_cvtneps_pbh(scaled);
  int64_t i = 0;
  if (first % 2 == 0) {
    const uint8_t* p = packed + first / 2;
    const __m512i table = _mm512_inserti64x4(_mm512_castsi256_si512(half), half, 1);  // look-ups read 5 bits
    for (; i + 32 <= count; i += 32) {
      const __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i / 2)));
      const __m512i pairs = _mm512_or_si512(_mm512_srli_epi32(code, 4), _mm512_slli_epi32(code, 16));
      _mm512_storeu_si512(out + i, _mm512_permutexvar_epi16(pairs, table));
    }
  }
  if (i == count) return;
  alignas(32) uint16_t values[16];
  _mm256_store_si256(reinterpret_cast<__m256i*>(values), half);
  for (; i < count; ++i) out[i] = values[code_at(packed, first + i)];
}
#endif

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
