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

/// out[q] lane 4 l + j from byte 16 l + 4 q + j of the planes: what packing the four vectors to bytes undoes.
NIBBLE_INLINE void join_planes(__m512i b0, __m512i b1, __m512i b2, __m512i b3, __m512 (&out)[4]) {
  const __m512i low[2] = {_mm512_unpacklo_epi8(b0, b1), _mm512_unpackhi_epi8(b0, b1)};
  const __m512i high[2] = {_mm512_unpacklo_epi8(b2, b3), _mm512_unpackhi_epi8(b2, b3)};
  for (int i = 0; i < 2; ++i) {
    out[2 * i] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(low[i], high[i]));
    out[2 * i + 1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(low[i], high[i]));
  }
}

/// The order of 64 bytes that join_planes() turns into the order of elements.
NIBBLE_INLINE __m512i in_look_up_order(__m512i bytes) {
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), bytes);
}

NIBBLE_INLINE void look_up(const FloatTable& table, __m512i index, __m512 (&out)[4]) {
  const __mmask64 upper = _mm512_movepi8_mask(index);
  join_planes(look_up(table.planes[0], index, upper), look_up(table.planes[1], index, upper),
              look_up(table.planes[2], index, upper), look_up(table.planes[3], index, upper), out);
}

/// The planes of 256 floats that are the same on both sides of zero, which is the one at 127: 128 magnitudes by steps
/// from zero; the one of 128 steps stands at 0.
struct MirroredTable {
  __m512i planes[4][2];
};

NIBBLE_INLINE MirroredTable load_mirrored_table(const float* values) {
  float sizes[256] = {values[255]};
  for (int i = 1; i < 128; ++i) sizes[i] = values[127 + i];
  const FloatTable table = load_float_table(sizes);
  MirroredTable mirrored;
  for (int plane = 0; plane < 4; ++plane)
    for (int i = 0; i < 2; ++i) mirrored.planes[plane][i] = table.planes[plane].parts[i];
  return mirrored;
}

NIBBLE_INLINE void look_up(const MirroredTable& table, __m512i index, __m512 (&out)[4]) {
  const __m512i zero = _mm512_set1_epi8(127);
  const __m512i steps = _mm512_abs_epi8(_mm512_sub_epi8(index, zero));
  const __mmask64 is_other = _mm512_test_epi8_mask(steps, steps), is_negative = _mm512_cmplt_epu8_mask(index, zero);
  __m512i b[4];
  for (int plane = 0; plane < 4; ++plane)
    b[plane] = _mm512_maskz_permutex2var_epi8(is_other, table.planes[plane][0], steps, table.planes[plane][1]);
  b[3] = _mm512_mask_sub_epi8(b[3], is_negative, b[3], _mm512_set1_epi8(-128));
  join_planes(b[0], b[1], b[2], b[3], out);
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
