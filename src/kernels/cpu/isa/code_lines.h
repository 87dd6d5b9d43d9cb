// Maps whose codes lie on a few straight lines over y, as those of the dynamic maps do, a line for each decade: a line
// gives the code, and what lies close to a threshold is left to the exact search.
#pragma once

#include "kernels/cpu/isa/code_search.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

/// A line gives min(y * slope + intercept, cap), which is 256 plus the code: the code stands in the upper bits of the
/// mantissa.
inline constexpr int kNearWidth = 16;  // in twice the bits: a threshold is at most eight units off, either way
inline constexpr float kCodeOrigin = 256, kUnit = 0x1p-16f, kNear = 8 * kUnit;

/// Holds past threshold `start`, whose code is start + 1, up to threshold `end`.
struct Line {
  int start, end;
  float slope, intercept;
};

NIBBLE_SIMD float at_line(const Line& line, float y) { return __builtin_fmaf(y, line.slope, line.intercept); }
NIBBLE_SIMD float cap_of(const Line& line) { return kCodeOrigin + static_cast<float>(line.end) + 0.5f; }

/// The line of the thresholds between `start` and `end`.
NIBBLE_SIMD Line make_line(const float* thresholds, int start, int end) {
  const int first = start + 1, last = end - 1;
  if (last < first) return {start, end, 0, kCodeOrigin + static_cast<float>(start + 1) + 0.5f};
  const auto at = [&](int i) { return i < 0 ? 0.0 : static_cast<double>(thresholds[i]); };
  // Through both ends; through the only one and half a code above the start.
  const double rise = last > first ? last - first : 0.5;
  const double slope = rise / (last > first ? at(last) - at(first) : at(first) - at(start));
  const double origin = first + 1 - slope * at(first);
  return {start, end, static_cast<float>(slope), static_cast<float>(origin + double{kNear} + double{kCodeOrigin})};
}

/// True if the line is past its first code at its start, and each threshold where it crosses to the next, to six
/// units.
NIBBLE_SIMD bool fits(const float* thresholds, const Line& line) {
  const auto unit = [](int code) { return kCodeOrigin + static_cast<float>(code); };
  if (at_line(line, line.start < 0 ? 0 : thresholds[line.start]) < unit(line.start + 1)) return false;
  for (int i = line.start + 1; i < line.end; ++i) {
    const float off = at_line(line, thresholds[i]) - unit(i + 1) - kNear;
    if (!(off >= -6 * kUnit && off <= 6 * kUnit)) return false;
  }
  return true;
}

/// Lines for codes from 0 to `last`, of values from 0 on; returns how many, 0 if more than kMost were needed.
template <int kMost>
NIBBLE_SIMD int make_lines(const float* thresholds, int last, Line (&lines)[kMost]) {
  int count = 0;
  for (int start = -1; start < last;) {
    int end = start + 1;
    while (end < last && fits(thresholds, make_line(thresholds, start, end + 1))) ++end;
    if (count == kMost) return 0;
    lines[count++] = make_line(thresholds, start, end);
    start = end;
  }
  return count;
}

NIBBLE_SIMD int bits_of(float y) { return __builtin_bit_cast(int, y); }

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
