// From a number to its code: the two searches that every blockwise format shares.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "base/half.h"
#include "quant/format.h"

namespace nibble::quant {

/// 1 / absmax, or NaN for a block that counts as zero, so that every element of it takes the code of NaN.
NIBBLE_INLINE float inverse_of(float absmax) {
  return absmax == 0 ? std::numeric_limits<float>::quiet_NaN() : 1.0f / absmax;
}

/// An absmax too small for a normal float counts as zero: its inverse would overflow.
NIBBLE_INLINE float flush_denormal(float absmax) { return absmax < std::numeric_limits<float>::min() ? 0.0f : absmax; }

/// Code of y = x * inverse_of(absmax).
NIBBLE_INLINE uint8_t encode_4bit(const CodeBook4Bit& code_book, float y) {
  if (y != y) return code_book.nan_code;
  int rank = 0;
  for (const float threshold : code_book.thresholds) rank += y > threshold ? 1 : 0;
  return code_book.code_of_rank[static_cast<size_t>(rank)];
}

/// Index of the value nearest to y among 256 ascending ones; half way between two, the even index; 0 for NaN.
NIBBLE_INLINE uint8_t encode_8bit(const float* code_book, float y) {
  int below = -1;  // code_book[below] < y <= code_book[above]
  int above = 256;
  if (y != y) return 0;
  while (above - below > 1) {
    const int middle = (below + above) / 2;
    if (code_book[middle] < y)
      below = middle;
    else
      above = middle;
  }
  if (below < 0) return 0;
  if (above > 255) return 255;
  const float midpoint = (code_book[below] + code_book[above]) * 0.5f;
  if (y == midpoint) return static_cast<uint8_t>(below % 2 == 0 ? below : above);
  return static_cast<uint8_t>(y < midpoint ? below : above);
}

}  // namespace nibble::quant
