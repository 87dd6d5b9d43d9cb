// The inner loop of quantize_8bit: codes of 64 finite elements at a time, for each instruction set.
//
// make_lanes(search, lanes) says whether the map suits; encode_64(lanes, x, inverse, codes, streamed).
#pragma once

#include "kernels/cpu/isa/byte_tables.h"
#include "kernels/cpu/isa/code_search.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

#if defined(__AVX512F__)

/// Cells as wide as one threshold each allows: an octave of |y| has 128 >> shift of them, 512 in all. The cell's first
/// code and that code's threshold come from tables of bytes.
struct Lanes {
  __m512i shift[2], base[2];  // words by octave, 32 positive and 32 negative; cell = base + (key >> shift)
  ByteTable first[2];         // by cell
  FloatTable threshold;       // by code
};

/// How far the cells of an octave can be merged: the largest shift that leaves one threshold in each.
NIBBLE_SIMD int widest_shift(const CodeSearch& search, int sign, int octave) {
  const int begin = sign * (kKeys + 1) + octave * 128;
  for (int shift = 7; shift > 0; --shift) {
    bool fits = true;
    for (int cell = begin; cell < begin + 128; cell += 1 << shift) {
      const int end = cell + (1 << shift) - 1;
      const int low = search.first[sign ? end : cell], high = search.last[sign ? cell : end];
      if (high > low + 1) fits = false;
    }
    if (fits) return shift;
  }
  return 0;
}

NIBBLE_SIMD bool make_lanes(const CodeSearch& search, Lanes& lanes) {
  if (!search.is_one_step) return false;
  uint16_t shift[64] = {}, base[64] = {};
  uint8_t first[512] = {};
  int cells = 0;
  for (int sign = 0; sign < 2; ++sign)
    for (int octave = 0; octave <= kOctaves; ++octave) {  // the last one holds 1 alone
      const bool is_top = octave == kOctaves;
      const int width = is_top ? 7 : widest_shift(search, sign, octave);
      const int count = is_top ? 1 : 128 >> width;
      if (cells + count > 512) return false;
      shift[sign * 32 + octave] = static_cast<uint16_t>(width);
      base[sign * 32 + octave] = static_cast<uint16_t>(cells - ((octave * 128) >> width));
      for (int i = 0; i < count; ++i) {
        const int begin = sign * (kKeys + 1) + octave * 128 + (i << width);
        first[cells++] = search.first[sign && !is_top ? begin + (1 << width) - 1 : begin];
      }
    }
  for (int i = 0; i < 2; ++i) {
    lanes.shift[i] = _mm512_loadu_si512(shift + 32 * i);
    lanes.base[i] = _mm512_loadu_si512(base + 32 * i);
    lanes.first[i] = load_byte_table(first + 256 * i);
  }
  lanes.threshold = load_float_table(search.threshold);
  return true;
}

/// Cells of 32 values whose upper halves are the words.
NIBBLE_SIMD __m512i cells_of(const Lanes& lanes, __m512i words) {
  const __m512i size = _mm512_and_si512(words, _mm512_set1_epi16(0x7fff));
  const __m512i key = _mm512_subs_epu16(size, _mm512_set1_epi16(kLowestKey));
  const __m512i sign = _mm512_and_si512(_mm512_srli_epi16(words, 10), _mm512_set1_epi16(32));
  const __m512i octave = _mm512_or_si512(_mm512_srli_epi16(key, 7), sign);
  const __m512i shift = _mm512_permutex2var_epi16(lanes.shift[0], octave, lanes.shift[1]);
  const __m512i base = _mm512_permutex2var_epi16(lanes.base[0], octave, lanes.base[1]);
  return _mm512_add_epi16(base, _mm512_srlv_epi16(key, shift));
}

/// Upper halves of a in the even words, of b in the odd ones.
NIBBLE_SIMD __m512i upper_halves(F32 a, F32 b) {
  const __m512i even = _mm512_srli_epi32(_mm512_castps_si512(a), 16);
  return _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_castps_si512(b));
}

/// Byte 16 l + 4 q + j of the result is the code of y[q] lane 4 l + j.
NIBBLE_SIMD __m512i encode_vectors(const Lanes& lanes, const F32 (&y)[4]) {
  const __m512i a = cells_of(lanes, upper_halves(y[0], y[1])), b = cells_of(lanes, upper_halves(y[2], y[3]));
  // Words 8 l + 2 j and 8 l + 2 j + 1 of a hold lane 4 l + j of y[0] and y[1]; b those of y[2] and y[3].
  alignas(64) static constexpr uint8_t kLower[64] = {
      0,  4,   8,   12,  2,  6,  10, 14, 64, 68, 72, 76, 66,  70,  74,  78,  16,  20,  24,  28,  18,  22,
      26, 30,  80,  84,  88, 92, 82, 86, 90, 94, 32, 36, 40,  44,  34,  38,  42,  46,  96,  100, 104, 108,
      98, 102, 106, 110, 48, 52, 56, 60, 50, 54, 58, 62, 112, 116, 120, 124, 114, 118, 122, 126};
  const __m512i lower = _mm512_load_si512(kLower);
  const __m512i cell = _mm512_permutex2var_epi8(a, lower, b);
  const __m512i wide = _mm512_permutex2var_epi8(a, _mm512_or_si512(lower, _mm512_set1_epi8(1)), b);
  const __mmask64 upper = _mm512_movepi8_mask(cell);
  const __m512i first = _mm512_mask_blend_epi8(_mm512_test_epi8_mask(wide, wide), look_up(lanes.first[0], cell, upper),
                                               look_up(lanes.first[1], cell, upper));
  F32 threshold[4];
  look_up(lanes.threshold, first, threshold);
  __m512i past[4];
  for (int q = 0; q < 4; ++q) past[q] = _mm512_movm_epi32(greater(y[q], threshold[q]));
  const __m512i steps = _mm512_packs_epi16(_mm512_packs_epi32(past[0], past[1]), _mm512_packs_epi32(past[2], past[3]));
  return _mm512_sub_epi8(first, steps);
}

template <typename T>
NIBBLE_SIMD void encode_64(const Lanes& lanes, const T* x, float inverse, uint8_t* codes, bool streamed) {
  const F32 scale = set1(inverse);
  const F32 y[4] = {load(x) * scale, load(x + 16) * scale, load(x + 32) * scale, load(x + 48) * scale};
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  store_bytes(codes, _mm512_permutexvar_epi32(order, encode_vectors(lanes, y)), streamed);
}

#else

struct Lanes {
  const CodeSearch* search;
};

NIBBLE_SIMD bool make_lanes(const CodeSearch& search, Lanes& lanes) {
  lanes.search = &search;
  return search.is_one_step;
}

/// Values and cells by vectors, look-ups one by one.
template <typename T>
NIBBLE_SIMD void encode_64(const Lanes& lanes, const T* x, float inverse, uint8_t* codes, bool) {
  float y[64];
  int32_t cells[64];
  for (int64_t i = 0; i < 64; i += kLanes) store(y + i, load(x + i) * set1(inverse));
  for (int i = 0; i < 64; ++i) cells[i] = search_cell(__builtin_bit_cast(uint32_t, y[i]));
  for (int i = 0; i < 64; ++i) {
    const uint8_t code = lanes.search->first[cells[i]];
    codes[i] = static_cast<uint8_t>(code + (y[i] > lanes.search->threshold[code] ? 1 : 0));
  }
}

#endif

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
