// Look-ups in tables of 256 entries by byte index, 64 at a time: four 64-byte registers hold a table of bytes, and a
// table of floats is four tables of bytes.
#pragma once

#include <cstdint>

#include "base/half.h"

#if defined(__AVX512F__)
#include <immintrin.h>

namespace nibble::kernels::cpu::NIBBLE_ISA {

struct ByteTable {
  __m512i parts[4];
};

NIBBLE_INLINE ByteTable load_byte_table(const uint8_t* bytes) {
  return {{_mm512_loadu_si512(bytes), _mm512_loadu_si512(bytes + 64), _mm512_loadu_si512(bytes + 128),
           _mm512_loadu_si512(bytes + 192)}};
}

/// `upper` marks the lanes whose index is 128 or more.
NIBBLE_INLINE __m512i look_up(const ByteTable& table, __m512i index, __mmask64 upper) {
  const __m512i low = _mm512_permutex2var_epi8(table.parts[0], index, table.parts[1]);
  const __m512i high = _mm512_permutex2var_epi8(table.parts[2], index, table.parts[3]);
  return _mm512_mask_blend_epi8(upper, low, high);
}

/// 256 floats as their four planes of bytes.
struct FloatTable {
  ByteTable planes[4];
};

NIBBLE_INLINE FloatTable load_float_table(const float* values) {
  uint8_t bytes[4][256];
  for (int i = 0; i < 256; i += 16) {
    const __m512i bits = _mm512_loadu_si512(values + i);
    for (int plane = 0; plane < 4; ++plane)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes[plane] + i),
                       _mm512_cvtepi32_epi8(_mm512_srli_epi32(bits, static_cast<unsigned>(8 * plane))));
  }
  return {{load_byte_table(bytes[0]), load_byte_table(bytes[1]), load_byte_table(bytes[2]), load_byte_table(bytes[3])}};
}

/// out[q] lane 4 l + j is the value at byte 16 l + 4 q + j of `index`: what packing the four vectors to bytes undoes.
NIBBLE_INLINE void look_up(const FloatTable& table, __m512i index, __m512 (&out)[4]) {
  const __mmask64 upper = _mm512_movepi8_mask(index);
  const __m512i b0 = look_up(table.planes[0], index, upper), b1 = look_up(table.planes[1], index, upper);
  const __m512i b2 = look_up(table.planes[2], index, upper), b3 = look_up(table.planes[3], index, upper);
  const __m512i low[2] = {_mm512_unpacklo_epi8(b0, b1), _mm512_unpackhi_epi8(b0, b1)};
  const __m512i high[2] = {_mm512_unpacklo_epi8(b2, b3), _mm512_unpackhi_epi8(b2, b3)};
  for (int i = 0; i < 2; ++i) {
    out[2 * i] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(low[i], high[i]));
    out[2 * i + 1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(low[i], high[i]));
  }
}

/// 256 words as their two planes of bytes.
struct WordTable {
  ByteTable low, high;
};

NIBBLE_INLINE WordTable load_word_table(const void* words) {
  WordTable table;
  const __m512i low = _mm512_set_epi64(0x7e7c7a7876747270, 0x6e6c6a6866646260, 0x5e5c5a5856545250, 0x4e4c4a4846444240,
                                       0x3e3c3a3836343230, 0x2e2c2a2826242220, 0x1e1c1a1816141210, 0x0e0c0a0806040200);
  const __m512i high = _mm512_or_si512(low, _mm512_set1_epi8(1));
  for (int i = 0; i < 4; ++i) {
    const __m512i first = _mm512_loadu_si512(static_cast<const char*>(words) + 128 * i);
    const __m512i second = _mm512_loadu_si512(static_cast<const char*>(words) + 128 * i + 64);
    table.low.parts[i] = _mm512_permutex2var_epi8(first, low, second);
    table.high.parts[i] = _mm512_permutex2var_epi8(first, high, second);
  }
  return table;
}

/// The words of 64 indices, in order.
NIBBLE_INLINE void look_up(const WordTable& table, __m512i index, __m512i (&out)[2]) {
  // Unpacking takes the lower eight bytes of each 16, then the upper ones.
  const __m512i ordered = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), index);
  const __mmask64 upper = _mm512_movepi8_mask(ordered);
  const __m512i low = look_up(table.low, ordered, upper), high = look_up(table.high, ordered, upper);
  out[0] = _mm512_unpacklo_epi8(low, high);
  out[1] = _mm512_unpackhi_epi8(low, high);
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA

#endif
