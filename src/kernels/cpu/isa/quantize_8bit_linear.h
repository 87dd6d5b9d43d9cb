// The inner loop of quantize_8bit for maps without negative values whose codes lie on a few straight lines, as those of
// the unsigned dynamic map do: a line gives the code, and what lies close to a threshold is left to the exact search.
#pragma once

#include "kernels/cpu/isa/code_search.h"

#if defined(__AVX512F__)

namespace nibble::kernels::cpu::NIBBLE_ISA {

/// Codes in fixed point, 16 bits behind the point: line(y) = min(y * slope + intercept, cap). An octave of y has one or
/// two lines.
struct LinearLanes {
  __m512 bound[2];  // by exponent mod 32: the threshold past which an octave has its second line, or +inf
  __m512i line[2];  // by exponent mod 32: the octave's first line
  __m512 slope, intercept, cap;
  __m512 least;  // smaller values are taken for it
};

inline constexpr int kCodeShift = 16;
inline constexpr int kNearBits = 0xfff0;  // none of them set: a threshold is at most eight units off, either way
inline constexpr float kNear = 8, kHalfCode = 1 << (kCodeShift - 1);

/// Holds past threshold `start`, whose code is start + 1, up to threshold `end`.
struct Line {
  int start, end;
  float slope, intercept;
};

NIBBLE_SIMD float code_unit(int code) { return static_cast<float>(code << kCodeShift); }
NIBBLE_SIMD float at_line(const Line& line, float y) { return __builtin_fmaf(y, line.slope, line.intercept); }

/// The line of the thresholds between `start` and `end`.
NIBBLE_SIMD Line make_line(const CodeSearch& search, int start, int end) {
  const int first = start + 1, last = end - 1;
  if (last < first) return {start, end, 0, code_unit(start + 1) + kHalfCode};
  const auto at = [&](int i) { return i < 0 ? 0.0 : static_cast<double>(search.threshold[i]); };
  // Through both ends; through the only one and half a code above the start.
  const double rise = last > first ? static_cast<double>(code_unit(last - first)) : static_cast<double>(kHalfCode);
  const double slope = rise / (last > first ? at(last) - at(first) : at(first) - at(start));
  const double origin = static_cast<double>(code_unit(first + 1)) - slope * at(first);
  return {start, end, static_cast<float>(slope), static_cast<float>(origin) + kNear};
}

/// True if the line is past its first code at its start, and each threshold where it crosses to the next, to four
/// units.
NIBBLE_SIMD bool fits(const CodeSearch& search, const Line& line) {
  if (line.start >= 0 && at_line(line, search.threshold[line.start]) < code_unit(line.start + 1)) return false;
  for (int i = line.start + 1; i < line.end; ++i) {
    const float off = at_line(line, search.threshold[i]) - kNear - code_unit(i + 1);
    if (!(off >= -4 && off <= 4)) return false;
  }
  return true;
}

NIBBLE_SIMD int exponent_of(float y) { return static_cast<int>(__builtin_bit_cast(uint32_t, y) >> 23); }

/// False if the map does not suit.
NIBBLE_SIMD bool make_linear_lanes(const CodeSearch& search, LinearLanes& lanes) {
  if (!(search.threshold[0] > 0x1p-30f) || search.threshold[254] > 1) return false;
  Line lines[16];
  int count = 0;
  for (int start = -1; start < 255;) {
    int end = start == -1 ? 0 : start + 1;
    while (start >= 0 && end < 254 && fits(search, make_line(search, start, end + 1))) ++end;
    if (count == 16) return false;
    lines[count++] = make_line(search, start, end);
    start = end;
  }
  alignas(64) float bound[32], slope[16] = {}, intercept[16] = {}, cap[16] = {};
  alignas(64) int32_t line[32];
  const int least = exponent_of(search.threshold[0]);
  int current = 0;
  for (int exponent = least; exponent < least + 32; ++exponent) {
    const int at = exponent & 31;
    line[at] = current;
    bound[at] = __builtin_inff();
    for (int starts = 0; current + 1 < count; ++starts, ++current) {
      const float start = search.threshold[lines[current + 1].start];
      if (exponent_of(start) != exponent) break;
      if (starts == 1) return false;
      bound[at] = start;
    }
  }
  for (int i = 0; i < count; ++i) {
    slope[i] = lines[i].slope;
    intercept[i] = lines[i].intercept;
    cap[i] = code_unit(lines[i].end) + kHalfCode;
  }
  for (int i = 0; i < 2; ++i) {
    lanes.bound[i] = _mm512_load_ps(bound + 16 * i);
    lanes.line[i] = _mm512_load_si512(line + 16 * i);
  }
  lanes.slope = _mm512_load_ps(slope);
  lanes.intercept = _mm512_load_ps(intercept);
  lanes.cap = _mm512_load_ps(cap);
  lanes.least = _mm512_set1_ps(__builtin_bit_cast(float, least << 23));
  return current + 1 == count;
}

/// Codes of 16 values in fixed point.
NIBBLE_SIMD __m512i fixed_codes(const LinearLanes& lanes, F32 y) {
  const F32 size = max(y, lanes.least);
  const __m512i exponent = _mm512_srli_epi32(_mm512_castps_si512(size), 23);
  const __mmask16 past = greater(size, _mm512_permutex2var_ps(lanes.bound[0], exponent, lanes.bound[1]));
  __m512i line = _mm512_permutex2var_epi32(lanes.line[0], exponent, lanes.line[1]);
  line = _mm512_mask_add_epi32(line, past, line, _mm512_set1_epi32(1));
  const F32 code = fma(size, _mm512_permutexvar_ps(line, lanes.slope), _mm512_permutexvar_ps(line, lanes.intercept));
  return _mm512_cvttps_epi32(min(code, _mm512_permutexvar_ps(line, lanes.cap)));
}

/// The third bytes of the dwords of a, then of b, in the lower half.
NIBBLE_SIMD __m512i third_bytes(__m512i a, __m512i b) {
  alignas(64) static constexpr uint8_t kThird[64] = {2,  6,  10, 14,  18,  22,  26,  30,  34,  38, 42,
                                                     46, 50, 54, 58,  62,  66,  70,  74,  78,  82, 86,
                                                     90, 94, 98, 102, 106, 110, 114, 118, 122, 126};
  return _mm512_permutex2var_epi8(a, _mm512_load_si512(kThird), b);
}

/// Codes of 64 finite elements.
NIBBLE_SIMD void encode_64(const LinearLanes& lanes, const CodeSearch& search, const float* x, float inverse,
                           uint8_t* codes) {
  __m512i found[4];
  __mmask16 near[4];
  NIBBLE_UNROLL
  for (int q = 0; q < 4; ++q) {
    found[q] = fixed_codes(lanes, load(x + 16 * q) * set1(inverse));
    near[q] = _mm512_testn_epi32_mask(found[q], _mm512_set1_epi32(kNearBits));
  }
  const __m512i low = third_bytes(found[0], found[1]), high = third_bytes(found[2], found[3]);
  _mm512_storeu_si512(codes, _mm512_inserti64x4(low, _mm512_castsi512_si256(high), 1));
  const __mmask16 any = _mm512_kor(_mm512_kor(near[0], near[1]), _mm512_kor(near[2], near[3]));
  if (__builtin_expect(_mm512_kortestz(any, any), 1)) return;
  for (int q = 0; q < 4; ++q)
    for (uint32_t lane = near[q]; lane != 0; lane &= lane - 1) {
      const int at = 16 * q + __builtin_ctz(lane);
      codes[at] = search_code(search, x[at] * inverse);
    }
}

/// Codes of finite elements, 64 at a time; returns how many.
[[gnu::noinline]] static int64_t encode_run(const LinearLanes& shared, const CodeSearch& search, const float* x,
                                            int64_t count, float inverse, uint8_t* codes) {
  const LinearLanes lanes = shared;
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) encode_64(lanes, search, x + i, inverse, codes + i);
  return i;
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA

#endif
