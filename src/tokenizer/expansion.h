// How much a file's rules may blow a text up: a chain of replacements can double it at every step.
#pragma once

#include <cstddef>

#include "base/error.h"

namespace nibble {

constexpr size_t kMaxText = size_t{1} << 30;

/// Most bytes that a text of `size` bytes may become on its way through a chain of steps.
constexpr size_t expansion_limit(size_t size) { return (size_t{1} << 20) + 256 * size; }

inline void check_expansion(size_t size, size_t limit) {
  if (size > limit)
    fail(ErrorCode::corrupt_file, "the tokenizer's rules blow a text up to {} bytes, expected at most {}", size, limit);
}

}  // namespace nibble
