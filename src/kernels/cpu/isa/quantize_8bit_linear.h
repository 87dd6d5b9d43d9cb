// The inner loop of quantize_8bit for maps without negative values whose codes lie on a few straight lines, as those of
// the unsigned dynamic map do: a line gives the code, and what lies close to a threshold is left to the exact search.
#pragma once

#include "kernels/cpu/isa/code_lines.h"

#if defined(__AVX512F__)

namespace nibble::kernels::cpu::NIBBLE_ISA {

/// Two octaves of y have one or two lines; adding `shift` to the bits of y moves the border between them to
/// the border between the octaves.
struct LinearLanes {
  __m512i shift;                  // by pair of octaves: exponent / 2 mod 16
  __m512 slope[2], intercept[2];  // by exponent mod 32, shifted
  __m512i cap[2];                 // bits of floats
  __m512i least;                  // smaller values are taken for it
  __m512i near;                   // words
};

/// False if the map does not suit.
NIBBLE_SIMD bool make_linear_lanes(const CodeSearch& search, LinearLanes& lanes) {
  if (!(search.threshold[0] > 0x1p-29f) || search.threshold[254] > 1) return false;
  Line lines[16];
  const int count = make_lines(search.threshold, 255, lines);
  if (count == 0) return false;
  alignas(64) float slope[32], intercept[32], cap[32];
  alignas(64) int32_t shift[16];
  const int least = bits_of(search.threshold[0]) >> 24;  // pairs of octaves: up to the one of 1
  int current = 0;
  for (int pair = least; pair < least + 16; ++pair) {
    shift[pair & 15] = 0;
    for (int half = 0; half < 2; ++half) {
      const int at = (2 * pair + half) & 31;
      slope[at] = lines[current].slope;
      intercept[at] = lines[current].intercept;
      cap[at] = cap_of(lines[current]);
      if (current + 1 == count) continue;
      const int border = bits_of(search.threshold[lines[current + 1].start]) + 1;
      if (border >> 24 != pair) continue;
      if (half == 1) return false;  // two borders
      shift[pair & 15] = (2 * pair + 1) * (1 << 23) - border;
      ++current;
    }
  }
  for (int i = 0; i < 2; ++i) {
    lanes.slope[i] = _mm512_load_ps(slope + 16 * i);
    lanes.intercept[i] = _mm512_load_ps(intercept + 16 * i);
    lanes.cap[i] = _mm512_load_si512(cap + 16 * i);
  }
  lanes.shift = _mm512_load_si512(shift);
  lanes.least = _mm512_set1_epi32(least << 24);
  lanes.near = _mm512_set1_epi16(kNearWidth);
  return current + 1 == count;
}

/// Where 64 values lie.
struct Lines {
  __m512i bits[4], line[4];
};

NIBBLE_SIMD Lines find_lines(const LinearLanes& lanes, const float* x, F32 scale) {
  Lines of;
  NIBBLE_UNROLL
  for (int q = 0; q < 4; ++q) {
    of.bits[q] = _mm512_max_epi32(_mm512_castps_si512(load(x + 16 * q) * scale), lanes.least);
    const __m512i shift = _mm512_permutexvar_epi32(_mm512_srli_epi32(of.bits[q], 24), lanes.shift);
    of.line[q] = _mm512_srli_epi32(_mm512_add_epi32(of.bits[q], shift), 23);
  }
  return of;
}

/// Codes of 64 values in fixed point: 16 bits behind the point, and others above the codes.
NIBBLE_SIMD void fixed_codes(const LinearLanes& lanes, const Lines& of, __m512i (&codes)[4]) {
  F32 slope[4], intercept[4];
  NIBBLE_UNROLL
  for (int q = 0; q < 4; ++q) {
    slope[q] = _mm512_permutex2var_ps(lanes.slope[0], of.line[q], lanes.slope[1]);
    intercept[q] = _mm512_permutex2var_ps(lanes.intercept[0], of.line[q], lanes.intercept[1]);
  }
  NIBBLE_UNROLL
  for (int q = 0; q < 4; ++q) {
    const __m512i cap = _mm512_permutex2var_epi32(lanes.cap[0], of.line[q], lanes.cap[1]);
    const F32 code = fma(_mm512_castsi512_ps(of.bits[q]), slope[q], intercept[q]);
    const __m512i capped = _mm512_min_epi32(_mm512_castps_si512(code), cap);
    codes[q] = _mm512_add_epi32(capped, capped);
  }
}

/// The third bytes of the dwords of a, then of b, in the lower half.
NIBBLE_SIMD __m512i third_bytes(__m512i a, __m512i b) {
  alignas(64) static constexpr uint8_t kThird[64] = {2,  6,  10, 14,  18,  22,  26,  30,  34,  38, 42,
                                                     46, 50, 54, 58,  62,  66,  70,  74,  78,  82, 86,
                                                     90, 94, 98, 102, 106, 110, 114, 118, 122, 126};
  return _mm512_permutex2var_epi8(a, _mm512_load_si512(kThird), b);
}

/// Lower words below kNearWidth.
NIBBLE_SIMD __mmask32 near_lanes(const LinearLanes& lanes, __m512i fixed) {
  return _mm512_mask_cmplt_epu16_mask(0x55555555, fixed, lanes.near);
}

/// Searches the codes among 64 that lie close to a threshold. It finds them again: if they were handed over, they would
/// be stored even where there are none.
[[gnu::noinline]] static void search_near(const LinearLanes& lanes, const CodeSearch& search, const float* x,
                                          float inverse, uint8_t* codes) {
  __m512i fixed[4];
  fixed_codes(lanes, find_lines(lanes, x, set1(inverse)), fixed);
  for (int q = 0; q < 4; ++q)
    for (uint32_t lane = near_lanes(lanes, fixed[q]); lane != 0; lane &= lane - 1) {
      const int at = 16 * q + __builtin_ctz(lane) / 2;
      codes[at] = search_code(search, x[at] * inverse);
    }
}

/// From the fixed codes of 64 finite elements.
NIBBLE_SIMD void settle_codes(const LinearLanes& lanes, const LinearLanes& shared, const CodeSearch& search,
                              const float* x, float inverse, const __m512i (&fixed)[4], uint8_t* codes) {
  const __m512i least = _mm512_min_epu16(_mm512_min_epu16(fixed[0], fixed[1]), _mm512_min_epu16(fixed[2], fixed[3]));
  const __m512i low = third_bytes(fixed[0], fixed[1]), high = third_bytes(fixed[2], fixed[3]);
  _mm512_storeu_si512(codes, _mm512_inserti64x4(low, _mm512_castsi512_si256(high), 1));
  const __mmask32 near = near_lanes(lanes, least);
  if (__builtin_expect(!_kortestz_mask32_u8(near, near), 0)) search_near(shared, search, x, inverse, codes);
}

/// Codes of `count` finite elements, a multiple of 64; beside(i) is done on the way. The lines of the next 64 are found
/// beside the codes of these: one after the other, the processor's queue would fill with instructions that wait.
template <typename Beside>
NIBBLE_SIMD void encode_elements(const LinearLanes& shared, const CodeSearch& search, const float* x, int64_t count,
                                 float inverse, uint8_t* codes, Beside&& beside) {
  const LinearLanes lanes = shared;
  const F32 scale = set1(inverse);
  if (count == 0) return;
  Lines next = find_lines(lanes, x, scale);
  for (int64_t i = 0; i < count; i += 64) {
    __m512i fixed[4];
    const Lines of = next;
    next = find_lines(lanes, x + (i + 64 < count ? i + 64 : i), scale);
    beside(i);
    fixed_codes(lanes, of, fixed);
    settle_codes(lanes, shared, search, x + i, inverse, fixed, codes + i);
  }
}

/// Codes of finite elements, 64 at a time; returns how many.
[[gnu::noinline]] static int64_t encode_run(const LinearLanes& lanes, const CodeSearch& search, const float* x,
                                            int64_t count, float inverse, uint8_t* codes) {
  const int64_t whole = count / 64 * 64;
  encode_elements(lanes, search, x, whole, inverse, codes, [](int64_t) {});
  return whole;
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA

#endif
