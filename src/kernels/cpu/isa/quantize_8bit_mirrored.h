// The inner loop of quantize_8bit for maps that are the same on both sides of zero, as the signed dynamic map is: half
// the cells, found by magnitude, so that all tables are bytes.
#pragma once

#include "kernels/cpu/isa/byte_tables.h"
#include "kernels/cpu/isa/code_search.h"

#if defined(__AVX512F__)

namespace nibble::kernels::cpu::NIBBLE_ISA {

/// An octave of |y| has a power of two of cells, each with one threshold at most, told apart by the upper bits of the
/// mantissa. A threshold is known by 16 bits, the lowest of the exponent and the upper ones of the mantissa: a y that
/// agrees with it in those is left to the exact search.
struct MirroredLanes {
  __m512i mask[2], base[2];     // bytes by exponent (octave_index): cell = base | (mantissa's upper 7 bits & mask)
  ByteTable first;              // by cell: steps from zero to the least |y| in it
  ByteTable lowest, low, high;  // by cell: bytes of its threshold
  __m512i bit6, one, zero;      // constants: g++ makes them again for each use
};

/// Key of a magnitude, as in search_cell.
NIBBLE_SIMD int magnitude_key(float size) {
  return static_cast<int>(__builtin_bit_cast(uint32_t, size) >> 16) - kLowestKey;
}

/// Where octaves of this exponent stand in the tables: its lowest bit comes last, as it begins another byte of y.
NIBBLE_SIMD int octave_index(int exponent) { return (exponent >> 1 & 63) | (exponent & 1) << 6; }

/// The fewest bits of the mantissa that leave one threshold in each cell of the octave; -1 if seven are too few.
NIBBLE_SIMD int cell_bits(const float (&thresholds)[128], int octave) {
  for (int bits = 0; bits <= 7; ++bits) {
    int previous = -1;
    bool fits = true;
    for (const float threshold : thresholds) {
      const int key = magnitude_key(threshold);
      if (key >> 7 != octave) continue;
      if (key >> (7 - bits) == previous) fits = false;
      previous = key >> (7 - bits);
    }
    if (fits) return bits;
  }
  return -1;
}

/// Numbers of cells are given out by depth, the largest octaves first, so that those of an octave differ in the bits of
/// its mask alone. The bits from the first on: 7, 0, 1, 2 ...
NIBBLE_SIMD int cell_base(int number, int depth) {
  int base = 0;
  for (int i = 0; i < depth; ++i)
    if (number >> (depth - 1 - i) & 1) base |= 1 << (i == 0 ? 7 : i - 1);
  return base;
}

/// False if the map does not suit.
NIBBLE_SIMD bool make_mirrored_lanes(const float* book, MirroredLanes& lanes) {
  float thresholds[128];
  if (!is_mirrored_book(book)) return false;
  // Ties go to the even code, which lies farther from zero for even i, on both sides.
  for (int i = 0; i < 128; ++i) thresholds[i] = threshold_after(book, kZeroCode + i);
  // Values below the lowest octave take its first cell.
  if (!(magnitude_key(thresholds[0]) >= 128 && magnitude_key(thresholds[127]) < kKeys)) return false;

  uint8_t mask[128] = {}, base[128] = {}, first[256] = {}, lowest[256], low[256], high[256];
  __builtin_memset(lowest, 0xff, sizeof lowest);
  __builtin_memset(low, 0xff, sizeof low);
  __builtin_memset(high, 0xff, sizeof high);
  int bits[kOctaves], number = 0;  // of 256 cells, this many are given out
  for (int octave = 0; octave < kOctaves; ++octave) bits[octave] = cell_bits(thresholds, octave);
  if (bits[0] != 0) return false;
  for (int width = 7; width >= 0; --width)
    for (int octave = 0; octave < kOctaves; ++octave) {
      if (bits[octave] < 0) return false;
      if (bits[octave] != width) continue;
      if (number + (1 << width) > 256) return false;
      const int exponent = (kLowestKey >> 7) + octave, start = cell_base(number >> width, 8 - width);
      number += 1 << width;
      for (int e = octave == 0 ? 0 : exponent; e <= exponent; ++e) {
        mask[octave_index(e)] = static_cast<uint8_t>(128 - (128 >> width));
        base[octave_index(e)] = static_cast<uint8_t>(start);
      }
      for (int i = 0; i < 1 << width; ++i) {
        const int key = octave * 128 + (i << (7 - width)), cell = start | (i << (7 - width));
        int steps = 0;
        while (steps < 128 && magnitude_key(thresholds[steps]) < key) ++steps;
        first[cell] = static_cast<uint8_t>(steps);
        if (steps == 128 || magnitude_key(thresholds[steps]) >= key + (128 >> width)) continue;  // none: above all
        const uint32_t threshold = __builtin_bit_cast(uint32_t, thresholds[steps]);
        lowest[cell] = static_cast<uint8_t>(threshold);
        low[cell] = static_cast<uint8_t>(threshold >> 8);
        high[cell] = static_cast<uint8_t>(threshold >> 16);
      }
    }
  for (int i = 0; i < 2; ++i) {
    lanes.mask[i] = _mm512_loadu_si512(mask + 64 * i);
    lanes.base[i] = _mm512_loadu_si512(base + 64 * i);
  }
  lanes.first = load_byte_table(first);
  lanes.bit6 = _mm512_set1_epi8(0x40);
  lanes.one = _mm512_set1_epi16(1);
  lanes.zero = _mm512_set1_epi8(kZeroCode);
  lanes.lowest = load_byte_table(lowest);
  lanes.low = load_byte_table(low);
  lanes.high = load_byte_table(high);
  return true;
}

/// Which bytes of two vectors of 16 values to take, values in order. `kPairs`: the first vector has the even ones.
struct ByteOrder {
  alignas(64) uint8_t tops[64];  // 8 l .. of each 16 bytes: the upper bytes of values 8 l .., then the bytes below
  alignas(64) uint8_t keys[64];  // the middle 16 bits of each
  alignas(64) uint8_t ends[64];  // the lower 16 bits
};

template <bool kPairs>
constexpr ByteOrder make_byte_order() {
  ByteOrder order{};
  for (int i = 0; i < 32; ++i) {
    const int at = kPairs ? i % 2 * 64 + i / 2 * 4 : 4 * i;
    order.tops[i / 8 * 16 + i % 8] = static_cast<uint8_t>(at + 3);
    order.tops[i / 8 * 16 + i % 8 + 8] = static_cast<uint8_t>(at + 2);
    for (int byte = 0; byte < 2; ++byte) {
      order.keys[2 * i + byte] = static_cast<uint8_t>(at + 1 + byte);
      order.ends[2 * i + byte] = static_cast<uint8_t>(at + byte);
    }
  }
  return order;
}
template <bool kPairs>
inline constexpr ByteOrder kByteOrder = make_byte_order<kPairs>();

NIBBLE_SIMD __m512i pick(F32 a, const uint8_t (&order)[64], F32 b) {
  return _mm512_permutex2var_epi8(_mm512_castps_si512(a), _mm512_load_si512(order), _mm512_castps_si512(b));
}

/// 64 finite values on their way: of each 16 bytes 8 belong to y[0] and y[1], 8 to y[2] and y[3].
struct MirroredCells {
  __m512i cells, keys[2];
  __mmask64 is_negative;
};

template <bool kPairs>
NIBBLE_SIMD MirroredCells find_cells(const MirroredLanes& lanes, const F32 (&y)[4]) {
  const ByteOrder& order = kByteOrder<kPairs>;
  const __m512i tops[2] = {pick(y[0], order.tops, y[1]), pick(y[2], order.tops, y[3])};
  const __m512i top = _mm512_unpacklo_epi64(tops[0], tops[1]), next = _mm512_unpackhi_epi64(tops[0], tops[1]);
  // Bit 6 is the exponent's lowest; bit 7 counts for nothing.
  const __m512i octave = _mm512_ternarylogic_epi32(lanes.bit6, _mm512_srli_epi16(next, 1), top, 0xca);
  const __m512i mask = _mm512_permutex2var_epi8(lanes.mask[0], octave, lanes.mask[1]);
  const __m512i base = _mm512_permutex2var_epi8(lanes.base[0], octave, lanes.base[1]);
  return {_mm512_ternarylogic_epi32(base, next, mask, 0xf8),
          {pick(y[0], order.keys, y[1]), pick(y[2], order.keys, y[3])},
          _mm512_movepi8_mask(top)};
}

/// Steps from zero. values(y) gives the 64 values again: what is rare shall not keep them in registers.
template <bool kPairs, typename Values>
NIBBLE_SIMD __m512i count_steps(const MirroredLanes& lanes, const MirroredCells& of, Values&& values) {
  const __mmask64 upper = _mm512_movepi8_mask(of.cells);
  const __m512i low = look_up(lanes.low, of.cells, upper), high = look_up(lanes.high, of.cells, upper);
  const __m512i thresholds[2] = {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
  __m512i past[2] = {_mm512_min_epu16(_mm512_subs_epu16(of.keys[0], thresholds[0]), lanes.one),
                     _mm512_min_epu16(_mm512_subs_epu16(of.keys[1], thresholds[1]), lanes.one)};
  const __mmask32 open[2] = {_mm512_cmpeq_epi16_mask(of.keys[0], thresholds[0]),
                             _mm512_cmpeq_epi16_mask(of.keys[1], thresholds[1])};
  if (__builtin_expect(!_kortestz_mask32_u8(open[0], open[1]), 0)) {
    F32 y[4];
    values(y);
    const __m512i lowest = look_up(lanes.lowest, of.cells, upper);
    const __m512i ends[2] = {_mm512_unpacklo_epi8(lowest, low), _mm512_unpackhi_epi8(lowest, low)};
    for (int i = 0; i < 2; ++i) {
      const __m512i end = pick(y[2 * i], kByteOrder<kPairs>.ends, y[2 * i + 1]);
      past[i] = _mm512_mask_mov_epi16(past[i], _mm512_mask_cmpgt_epu16_mask(open[i], end, ends[i]), lanes.one);
    }
  }
  return _mm512_add_epi8(look_up(lanes.first, of.cells, upper), _mm512_packus_epi16(past[0], past[1]));
}

/// Codes of 64 values in order.
NIBBLE_SIMD __m512i codes_of(const MirroredLanes& lanes, __m512i steps, __mmask64 is_negative) {
  // 128 steps down saturate: there is no value below -127 steps.
  const __m512i codes = _mm512_mask_subs_epu8(_mm512_add_epi8(lanes.zero, steps), is_negative, lanes.zero, steps);
  return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), codes);
}

/// Codes of `count` finite values, a multiple of 64: values(i, y) are those from i on, store(i, codes) takes them. The
/// cells of the next 64 are found beside the codes of these: one after the other, the processor's queue would fill with
/// instructions that wait. kKeepsSigns: negative values take no code of zero but the one below.
template <bool kPairs, bool kKeepsSigns, typename Values, typename Store>
NIBBLE_SIMD void encode_values(const MirroredLanes& lanes, int64_t count, Values&& values, Store&& store) {
  if (count == 0) return;
  F32 y[4];
  values(int64_t{0}, y);
  MirroredCells next = find_cells<kPairs>(lanes, y);
  for (int64_t i = 0; i < count; i += 64) {
    const MirroredCells cells = next;
    values(i + 64 < count ? i + 64 : i, y);
    next = find_cells<kPairs>(lanes, y);
    __m512i steps = count_steps<kPairs>(lanes, cells, [&](F32(&again)[4]) { values(i, again); });
    if constexpr (kKeepsSigns) steps = _mm512_mask_max_epu8(steps, cells.is_negative, steps, _mm512_set1_epi8(1));
    store(i, codes_of(lanes, steps, cells.is_negative));
  }
}

/// 64 elements, scaled; bf16 in pairs: even elements lie in the low halves of the dwords, odd ones in the high halves.
NIBBLE_SIMD void load_scaled(const float* x, F32 scale, F32 (&y)[4]) {
  NIBBLE_UNROLL
  for (int q = 0; q < 4; ++q) y[q] = load(x + 16 * q) * scale;
}
NIBBLE_SIMD void load_scaled(const f16_t* x, F32 scale, F32 (&y)[4]) {
  NIBBLE_UNROLL
  for (int q = 0; q < 4; ++q) y[q] = load(x + 16 * q) * scale;
}
NIBBLE_SIMD void load_scaled(const bf16_t* x, F32 scale, F32 (&y)[4]) {
  NIBBLE_UNROLL
  for (int i = 0; i < 2; ++i) {
    const __m512i pairs = _mm512_loadu_si512(x + 32 * i);
    y[2 * i] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)) * scale;
    y[2 * i + 1] = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536))) * scale;
  }
}

/// Codes of finite elements, 64 at a time; returns how many. A function of its own, with tables of its own: they stay
/// in registers.
template <typename T>
[[gnu::noinline]] static int64_t encode_run(const MirroredLanes& shared, const T* x, int64_t count, float inverse,
                                            uint8_t* codes, bool streamed) {
  const MirroredLanes lanes = shared;
  const F32 scale = set1(inverse);
  const int64_t ahead = prefetch_distance(count * int64_t{sizeof(T)}), whole = count / 64 * 64;
  encode_values<__is_same(T, bf16_t), false>(
      lanes, whole, [&](int64_t i, F32(&y)[4]) { load_scaled(x + i, scale, y); },
      [&](int64_t i, __m512i found) {
        prefetch_ahead(x + i, 64 * int64_t{sizeof(T)}, ahead);
        store_bytes(codes + i, found, streamed);
      });
  return whole;
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA

#endif
