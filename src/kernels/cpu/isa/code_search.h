// The exact search behind quantize_8bit, for any ascending map: the upper 16 bits of y choose a first candidate, one
// comparison (or a few, in crowded maps) settles the code.
#pragma once

#include "kernels/cpu/isa/simd.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

/// Octaves of |y| with 128 cells each, from 2^-23 up; what is below shares the lowest cell.
inline constexpr int kOctaves = 24;
inline constexpr int kLowestKey = (127 - 23) << 7;
inline constexpr int kKeys = kOctaves * 128;

/// Code = how many thresholds lie below y. A cell is an interval of y; negative cells follow the positive ones.
struct CodeSearch {
  float threshold[256];            // ascending; the last is +inf
  uint8_t first[2 * (kKeys + 1)];  // code of the least y in a cell
  uint8_t last[2 * (kKeys + 1)];   // code of the greatest
  bool is_one_step;                // every cell holds one threshold at most
};

NIBBLE_SIMD int search_cell(uint32_t bits) {
  const int key = static_cast<int>((bits & 0x7fffffffu) >> 16) - kLowestKey;
  const int clamped = key < 0 ? 0 : key > kKeys ? kKeys : key;
  return clamped + static_cast<int>(bits >> 31) * (kKeys + 1);
}

/// y is past it from the midpoint of code i and the next on; ties go to the even one.
NIBBLE_SIMD float threshold_after(const float* book, int i) {
  const float midpoint = (book[i] + book[i + 1]) * 0.5f;
  if (i % 2 == 0 || midpoint <= book[i]) return midpoint;
  if (midpoint == 0) return -0x1p-149f;  // y > the float below means y >= midpoint
  const uint32_t bits = __builtin_bit_cast(uint32_t, midpoint);
  return __builtin_bit_cast(float, midpoint > 0 ? bits - 1 : bits + 1);
}

NIBBLE_SIMD int code_from(const CodeSearch& search, float y, int code) {
  while (y > search.threshold[code]) ++code;
  return code;
}

NIBBLE_SIMD uint8_t search_code(const CodeSearch& search, float y) {
  if (y != y) return 0;
  return static_cast<uint8_t>(code_from(search, y, search.first[search_cell(__builtin_bit_cast(uint32_t, y))]));
}

static void make_code_search(const float* book, CodeSearch& search) {
  for (int i = 0; i < 255; ++i) search.threshold[i] = threshold_after(book, i);
  search.threshold[255] = __builtin_inff();
  search.is_one_step = true;
  int code = 0;
  for (int i = 0; i < 2 * (kKeys + 1); ++i) {  // ascending y: negative cells from the largest magnitude, then positive
    const bool is_negative = i <= kKeys;
    const int key = is_negative ? kKeys - i : i - (kKeys + 1);
    const auto lower = static_cast<uint32_t>(key + kLowestKey) << 16;
    const float small = key == 0 ? 0.0f : __builtin_bit_cast(float, lower);
    const float large = key == kKeys ? __builtin_inff() : __builtin_bit_cast(float, lower | 0xffff);
    const int cell = key + (is_negative ? kKeys + 1 : 0);
    code = code_from(search, is_negative ? -large : small, code);
    search.first[cell] = static_cast<uint8_t>(code);
    code = code_from(search, is_negative ? -small : large, code);
    search.last[cell] = static_cast<uint8_t>(code);
    if (search.last[cell] > search.first[cell] + 1) search.is_one_step = false;
  }
}

inline constexpr int kZeroCode = 127;

/// The same on both sides of zero, which has code 127.
NIBBLE_SIMD bool is_mirrored_book(const float* book) {
  bool is_mirrored = book[kZeroCode] == 0;
  for (int i = 1; i <= kZeroCode; ++i) is_mirrored = is_mirrored && book[kZeroCode + i] == -book[kZeroCode - i];
  return is_mirrored;
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
