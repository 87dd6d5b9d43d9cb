// Arithmetic on sizes that come from files and users: overflow is an error, never a small allocation.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/error.h"

namespace nibble {

inline int64_t checked_add(int64_t a, int64_t b, std::string_view what) {
  int64_t result = 0;
  if (__builtin_add_overflow(a, b, &result)) fail(ErrorCode::corrupt_file, "{}: {} + {} overflows", what, a, b);
  return result;
}

inline int64_t checked_mul(int64_t a, int64_t b, std::string_view what) {
  int64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result)) fail(ErrorCode::corrupt_file, "{}: {} x {} overflows", what, a, b);
  return result;
}

/// Product of a shape's dimensions; 1 for a scalar. Negative dimensions are an error.
inline int64_t checked_count(std::span<const int64_t> shape, std::string_view what) {
  int64_t count = 1;
  for (const int64_t dimension : shape) {
    if (dimension < 0) fail(ErrorCode::corrupt_file, "{}: negative dimension {}", what, dimension);
    count = checked_mul(count, dimension, what);
  }
  return count;
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace nibble
