// The inner loop of quantize_8bit for maps that are the same on both sides of zero, as the signed dynamic map is: half
// the cells, found by magnitude, so that all tables are bytes.
#pragma once

#include "kernels/cpu/isa/byte_tables.h"
#include "kernels/cpu/isa/code_search.h"

#if defined(__AVX512F__)

namespace nibble::kernels::cpu::NIBBLE_ISA {

/// An octave of |y| has 128 >> shift cells, each with one threshold at most. A threshold is known by 16 bits, the
/// lowest of the exponent and the upper ones of the mantissa: a y that agrees with it in those is left to the exact
/// search.
struct MirroredLanes {
  __m512i shift, base;     // words by octave; cell = base + (key >> shift)
  ByteTable first;         // by cell: steps from zero to the least |y| in it
  ByteTable threshold[3];  // by cell: bytes of the threshold, the lowest first
};

inline constexpr int kZeroCode = 127;

/// Key of a magnitude, as in search_cell.
NIBBLE_SIMD int magnitude_key(float size) {
  return static_cast<int>(__builtin_bit_cast(uint32_t, size) >> 16) - kLowestKey;
}

/// The largest shift that leaves one threshold in each cell of the octave; -1 if there is none.
NIBBLE_SIMD int widest_shift(const float (&thresholds)[128], int octave) {
  for (int shift = 7; shift >= 0; --shift) {
    int previous = -1;
    bool fits = true;
    for (const float threshold : thresholds) {
      const int key = magnitude_key(threshold);
      if (key >> 7 != octave) continue;
      if (key >> shift == previous) fits = false;
      previous = key >> shift;
    }
    if (fits) return shift;
  }
  return -1;
}

/// False if the map does not suit.
NIBBLE_SIMD bool make_mirrored_lanes(const float* book, MirroredLanes& lanes) {
  float thresholds[128];
  if (book[kZeroCode] != 0) return false;
  for (int i = 1; i <= kZeroCode; ++i)
    if (book[kZeroCode + i] != -book[kZeroCode - i]) return false;
  // Ties go to the even code, which lies farther from zero for even i, on both sides.
  for (int i = 0; i < 128; ++i) thresholds[i] = threshold_after(book, kZeroCode + i);
  // Values below the lowest octave take its first cell.
  if (!(magnitude_key(thresholds[0]) >= 128 && magnitude_key(thresholds[127]) < kKeys)) return false;

  uint16_t shift[32] = {}, base[32] = {};
  uint8_t first[256] = {}, bytes[3][256] = {};
  int cells = 0, steps = 0;
  for (int octave = 0; octave <= kOctaves; ++octave) {  // the last one holds 1 alone
    const int width = octave == kOctaves ? 7 : widest_shift(thresholds, octave);
    if (width < 0 || cells + (128 >> width) > 256) return false;
    shift[octave] = static_cast<uint16_t>(width);
    base[octave] = static_cast<uint16_t>(cells - ((octave * 128) >> width));
    for (int i = 0; i < 128 >> width; ++i, ++cells) {
      const bool is_split = steps < 128 && magnitude_key(thresholds[steps]) >> width == (octave * 128 >> width) + i;
      // Otherwise one whose middle bits no y has: above all of an even exponent's, or below an odd one's.
      const bool is_odd = ((kLowestKey >> 7) + octave) % 2 != 0;
      const uint32_t bits = is_split ? __builtin_bit_cast(uint32_t, thresholds[steps]) : is_odd ? 0 : 0xffffff;
      first[cells] = static_cast<uint8_t>(is_split || !is_odd ? steps : steps - 1);
      for (int byte = 0; byte < 3; ++byte) bytes[byte][cells] = static_cast<uint8_t>(bits >> (8 * byte));
      if (is_split) ++steps;
    }
  }
  lanes.shift = _mm512_loadu_si512(shift);
  lanes.base = _mm512_loadu_si512(base);
  lanes.first = load_byte_table(first);
  for (int byte = 0; byte < 3; ++byte) lanes.threshold[byte] = load_byte_table(bytes[byte]);
  return true;
}

/// Cells of 32 values whose upper halves are the words.
NIBBLE_SIMD __m512i cells_of(const MirroredLanes& lanes, __m512i words) {
  const __m512i size = _mm512_and_si512(words, _mm512_set1_epi16(0x7fff));
  const __m512i key = _mm512_subs_epu16(size, _mm512_set1_epi16(kLowestKey));
  const __m512i octave = _mm512_srli_epi16(key, 7);
  const __m512i shift = _mm512_permutexvar_epi16(octave, lanes.shift);
  return _mm512_add_epi16(_mm512_permutexvar_epi16(octave, lanes.base), _mm512_srlv_epi16(key, shift));
}

/// The middle 16 bits of a in the even words, of b in the odd ones.
NIBBLE_SIMD __m512i middles_of(F32 a, F32 b) {
  const __m512i even = _mm512_srli_epi32(_mm512_castps_si512(a), 8);
  return _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(_mm512_castps_si512(b), 8));
}

/// The lower 8 bits of a in the even words, of b in the odd ones.
NIBBLE_SIMD __m512i lows_of(F32 a, F32 b) {
  const __m512i odd = _mm512_slli_epi32(_mm512_castps_si512(b), 16);
  return _mm512_and_si512(_mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_castps_si512(a), odd), _mm512_set1_epi16(255));
}

/// The codes of 64 finite values: bytes 16 l .. 16 l + 7 belong to lanes 4 l .. of y[0] and y[1] in turn, the next 8 to
/// y[2] and y[3].
NIBBLE_SIMD __m512i encode_vectors(const MirroredLanes& lanes, const F32 (&y)[4]) {
  const __m512i words[2] = {upper_halves(y[0], y[1]), upper_halves(y[2], y[3])};
  const __m512i middles[2] = {middles_of(y[0], y[1]), middles_of(y[2], y[3])};
  const __m512i cells = _mm512_packus_epi16(cells_of(lanes, words[0]), cells_of(lanes, words[1]));
  const __mmask64 upper = _mm512_movepi8_mask(cells);
  const __m512i low = look_up(lanes.threshold[1], cells, upper), high = look_up(lanes.threshold[2], cells, upper);
  const __m512i thresholds[2] = {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
  const __m512i one = _mm512_set1_epi16(1);
  __m512i past[2] = {_mm512_min_epu16(_mm512_subs_epu16(middles[0], thresholds[0]), one),
                     _mm512_min_epu16(_mm512_subs_epu16(middles[1], thresholds[1]), one)};
  const __mmask32 open[2] = {_mm512_cmpeq_epi16_mask(middles[0], thresholds[0]),
                             _mm512_cmpeq_epi16_mask(middles[1], thresholds[1])};
  if (__builtin_expect((open[0] | open[1]) != 0, 0)) {
    const __m512i lowest = look_up(lanes.threshold[0], cells, upper), none = _mm512_setzero_si512();
    const __m512i low_thresholds[2] = {_mm512_unpacklo_epi8(lowest, none), _mm512_unpackhi_epi8(lowest, none)};
    for (int i = 0; i < 2; ++i) {
      const __m512i lows = lows_of(y[2 * i], y[2 * i + 1]);
      past[i] = _mm512_mask_mov_epi16(past[i], _mm512_mask_cmpgt_epu16_mask(open[i], lows, low_thresholds[i]), one);
    }
  }
  const __m512i steps = _mm512_add_epi8(look_up(lanes.first, cells, upper), _mm512_packus_epi16(past[0], past[1]));
  const __m512i zero = _mm512_set1_epi8(kZeroCode);
  const __mmask64 negative = _mm512_movepi8_mask(_mm512_packs_epi16(words[0], words[1]));
  // 128 steps down saturate: there is no value below -127 steps.
  return _mm512_mask_subs_epu8(_mm512_add_epi8(zero, steps), negative, zero, steps);
}

template <typename T>
NIBBLE_SIMD void encode_64(const MirroredLanes& lanes, const T* x, float inverse, uint8_t* codes, bool streamed) {
  alignas(64) static constexpr uint8_t kOrder[64] = {0, 2,  4,  6,  16, 18, 20, 22, 32, 34, 36, 38, 48, 50, 52, 54,
                                                     1, 3,  5,  7,  17, 19, 21, 23, 33, 35, 37, 39, 49, 51, 53, 55,
                                                     8, 10, 12, 14, 24, 26, 28, 30, 40, 42, 44, 46, 56, 58, 60, 62,
                                                     9, 11, 13, 15, 25, 27, 29, 31, 41, 43, 45, 47, 57, 59, 61, 63};
  const F32 scale = set1(inverse);
  const F32 y[4] = {load(x) * scale, load(x + 16) * scale, load(x + 32) * scale, load(x + 48) * scale};
  store_bytes(codes, _mm512_permutexvar_epi8(_mm512_load_si512(kOrder), encode_vectors(lanes, y)), streamed);
}

/// Even elements lie in the low halves of the dwords, odd ones in the high halves: no unpacking.
NIBBLE_SIMD void encode_64(const MirroredLanes& lanes, const bf16_t* x, float inverse, uint8_t* codes, bool streamed) {
  const F32 scale = set1(inverse);
  F32 y[4];
  NIBBLE_UNROLL
  for (int i = 0; i < 2; ++i) {
    const __m512i pairs = _mm512_loadu_si512(x + 32 * i);
    y[2 * i] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)) * scale;
    y[2 * i + 1] = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536))) * scale;
  }
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  store_bytes(codes, _mm512_permutexvar_epi64(order, encode_vectors(lanes, y)), streamed);
}

/// Codes of finite elements, 64 at a time; returns how many. A function of its own, with tables of its own: they stay
/// in registers.
template <typename T>
[[gnu::noinline]] static int64_t encode_run(const MirroredLanes& shared, const T* x, int64_t count, float inverse,
                                            uint8_t* codes, bool streamed) {
  const MirroredLanes lanes = shared;
  const int64_t ahead = prefetch_distance(count * int64_t{sizeof(T)});
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) {
    prefetch_ahead(x + i, 64 * int64_t{sizeof(T)}, ahead);
    encode_64(lanes, x + i, inverse, codes + i, streamed);
  }
  return i;
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA

#endif
