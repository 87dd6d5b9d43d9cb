// The inner loop of quantize_8bit in AVX2, for maps of eight lines or fewer, as both dynamic maps are: as many as a
// register's lanes, so that one instruction looks up a number for eight elements.
#pragma once

#include "kernels/cpu/isa/code_lines.h"

#if defined(__AVX2__) && !defined(__AVX512F__)

namespace nibble::kernels::cpu::NIBBLE_ISA {

/// Three octaves of y have one line or two; adding `shift` to the bits of y moves the border between them to that of
/// three octaves. Line i stands where three octaves have number kLeastThird + i.
struct EightLines {
  __m256i shift;  // by number of three octaves mod 8, as the others
  __m256 slope, intercept;
  __m256i cap;  // bits of floats
};

/// Three octaves begin where the exponent is one below a multiple of 3. Values below the least are taken for its first.
inline constexpr int kLeastThird = 35;
/// A third of an exponent is its product with this in 15 bits, rounded.
inline constexpr int kThird = 10923;

NIBBLE_SIMD int third_of(int bits) { return ((bits >> 23) * kThird + (1 << 14)) >> 15; }
NIBBLE_SIMD int first_bits(int third) { return (3 * third - 1) << 23; }

/// False if the map, of codes from 0 to `last` for values from 0 on, does not suit.
NIBBLE_SIMD bool make_eight_lines(const float* thresholds, int last, EightLines& lanes) {
  Line lines[8] = {};
  const int count = make_lines(thresholds, last, lines);
  if (count == 0 || !(bits_of(thresholds[0]) >= first_bits(kLeastThird))) return false;
  alignas(32) int32_t shift[8] = {};
  alignas(32) float slope[8], intercept[8], cap[8];
  for (int i = 0; i < 8; ++i) {
    const int at = (kLeastThird + i) & 7;
    slope[at] = lines[i].slope;
    intercept[at] = lines[i].intercept;
    cap[at] = cap_of(lines[i]);
    if (i == 0 || i >= count) continue;
    const int border = bits_of(thresholds[lines[i].start]) + 1;
    shift[third_of(border) & 7] = first_bits(kLeastThird + i) - border;
  }
  // Each end of each line and of each three octaves finds its line.
  const auto suits = [&](int bits) {
    int line = 0;
    while (line + 1 < count && bits > bits_of(thresholds[lines[line].end])) ++line;
    const int clamped = bits < first_bits(kLeastThird) ? first_bits(kLeastThird) : bits;
    return third_of(clamped + shift[third_of(clamped) & 7]) == kLeastThird + line;
  };
  for (int i = 1; i < 8; ++i)
    for (int side = -1; side <= 1; ++side) {
      if (!suits(first_bits(kLeastThird + i) + side)) return false;
      if (i < count && !suits(bits_of(thresholds[lines[i].start]) + side)) return false;
    }
  lanes.shift = _mm256_load_si256(reinterpret_cast<const __m256i*>(shift));
  lanes.slope = _mm256_load_ps(slope);
  lanes.intercept = _mm256_load_ps(intercept);
  lanes.cap = _mm256_load_si256(reinterpret_cast<const __m256i*>(cap));
  return true;
}

/// Codes of eight values from 0 on in fixed point: 16 bits behind the point, and others above the codes.
NIBBLE_SIMD __m256i fixed_codes(const EightLines& lanes, __m256 y) {
  const __m256i third = _mm256_set1_epi32(kThird);
  const __m256i bits = _mm256_max_epi32(_mm256_castps_si256(y), _mm256_set1_epi32(first_bits(kLeastThird)));
  const __m256i octaves = _mm256_mulhrs_epi16(_mm256_srli_epi32(bits, 23), third);
  const __m256i shifted = _mm256_add_epi32(bits, _mm256_permutevar8x32_epi32(lanes.shift, octaves));
  const __m256i line = _mm256_mulhrs_epi16(_mm256_srli_epi32(shifted, 23), third);
  const __m256 code = fma(_mm256_castsi256_ps(bits), _mm256_permutevar8x32_ps(lanes.slope, line),
                          _mm256_permutevar8x32_ps(lanes.intercept, line));
  const __m256i cap = _mm256_permutevar8x32_epi32(lanes.cap, line);
  const __m256i capped = _mm256_min_epi32(_mm256_castps_si256(code), cap);
  return _mm256_add_epi32(capped, capped);
}

/// Searches the codes among 32 that lie close to a threshold. All in registers: references would have them stored even
/// where there are none.
template <bool kKeepsSigns>
[[gnu::noinline]] static void search_near(const CodeSearch& search, __m256i fixed0, __m256i fixed1, __m256i fixed2,
                                          __m256i fixed3, F32 y0, F32 y1, F32 y2, F32 y3, uint8_t* codes) {
  const __m256i fixed[4] = {fixed0, fixed1, fixed2, fixed3};
  const F32 y[4] = {y0, y1, y2, y3};
  for (int q = 0; q < 4; ++q) {
    const __m256i behind = _mm256_and_si256(fixed[q], _mm256_set1_epi32(0xffff));
    const __m256i near = _mm256_cmpgt_epi32(_mm256_set1_epi32(kNearWidth), behind);
    for (int lanes = _mm256_movemask_ps(_mm256_castsi256_ps(near)); lanes != 0; lanes &= lanes - 1) {
      const int i = __builtin_ctz(static_cast<unsigned>(lanes));
      const float value = y[q][i];
      const uint8_t code = search_code(search, value);
      codes[8 * q + i] = static_cast<uint8_t>(code - (kKeepsSigns && value < 0 && code == kZeroCode ? 1 : 0));
    }
  }
}

/// The third bytes of four dwords, as dword q of each half; the others are zero.
NIBBLE_SIMD __m256i third_bytes(__m256i dwords, int q) {
  const auto at = [&](int i) { return i == q ? 0x0e0a0602 : -1; };
  return _mm256_shuffle_epi8(dwords, _mm256_setr_epi32(at(0), at(1), at(2), at(3), at(0), at(1), at(2), at(3)));
}

/// Codes of 32 finite values. kKeepsSigns: negative values take no code of zero but the one below.
template <bool kIsMirrored, bool kKeepsSigns>
NIBBLE_SIMD void encode_32(const EightLines& lanes, const CodeSearch& search, const F32 (&y)[4], uint8_t* codes) {
  __m256i fixed[4];
  NIBBLE_UNROLL
  for (int q = 0; q < 4; ++q) fixed[q] = fixed_codes(lanes, kIsMirrored ? abs(y[q]) : y[q]);
  const __m256i least = _mm256_min_epu16(_mm256_min_epu16(fixed[0], fixed[1]), _mm256_min_epu16(fixed[2], fixed[3]));
  __m256i found = _mm256_or_si256(_mm256_or_si256(third_bytes(fixed[0], 0), third_bytes(fixed[1], 1)),
                                  _mm256_or_si256(third_bytes(fixed[2], 2), third_bytes(fixed[3], 3)));
  if constexpr (kIsMirrored) {
    const __m256i zero = _mm256_set1_epi8(kZeroCode);
    __m256i bits[4];
    for (int q = 0; q < 4; ++q) bits[q] = _mm256_castps_si256(y[q]);
    const __m256i sign = _mm256_packs_epi16(_mm256_packs_epi32(bits[0], bits[1]), _mm256_packs_epi32(bits[2], bits[3]));
    const __m256i up = _mm256_add_epi8(zero, found);
    if constexpr (kKeepsSigns) found = _mm256_max_epu8(found, _mm256_set1_epi8(1));
    found = _mm256_blendv_epi8(up, _mm256_subs_epu8(zero, found), sign);
  }
  found = _mm256_permutevar8x32_epi32(found, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), found);
  const __m256i near = _mm256_subs_epu16(_mm256_set1_epi16(kNearWidth), least);
  if (__builtin_expect(_mm256_testz_si256(near, near) == 0, 0))
    search_near<kKeepsSigns>(search, fixed[0], fixed[1], fixed[2], fixed[3], y[0], y[1], y[2], y[3], codes);
}

/// Codes of `count` finite values, a multiple of 32: values(i, y) are those from i on; beside(i) is done on the way.
/// Mirrored: the lines count steps from zero.
template <bool kIsMirrored, bool kKeepsSigns, typename Values, typename Beside>
NIBBLE_SIMD void encode_values(const EightLines& shared, const CodeSearch& search, int64_t count, uint8_t* codes,
                               Values&& values, Beside&& beside) {
  const EightLines lanes = shared;
  for (int64_t i = 0; i < count; i += 32) {
    F32 y[4];
    values(i, y);
    encode_32<kIsMirrored, kKeepsSigns>(lanes, search, y, codes + i);
    beside(i);
  }
}

/// Codes of finite elements, 64 at a time; returns how many.
template <bool kIsMirrored, typename T>
[[gnu::noinline]] static int64_t encode_run(const EightLines& lanes, const CodeSearch& search, const T* x,
                                            int64_t count, float inverse, uint8_t* codes) {
  const F32 scale = set1(inverse);
  const int64_t ahead = prefetch_distance(count * int64_t{sizeof(T)}), whole = count / 64 * 64;
  encode_values<kIsMirrored, false>(
      lanes, search, whole, codes,
      [&](int64_t i, F32(&y)[4]) {
        NIBBLE_UNROLL
        for (int q = 0; q < 4; ++q) y[q] = load(x + i + 8 * q) * scale;
      },
      [&](int64_t i) { prefetch_ahead(x + i, 32 * int64_t{sizeof(T)}, ahead); });
  return whole;
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA

#endif
