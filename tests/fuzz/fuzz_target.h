// What every fuzz target shares: an input is either accepted or refused with nibble::Error; anything else is a bug.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "nibble/types.h"

namespace nibble {

/// Calls `body` and swallows Error. Other exceptions escape and stop the fuzzer, as do sanitizer reports. Always 0.
template <typename Body>
int expect_no_crash(const Body& body) {
  try {
    body();
  } catch (const Error&) {
  }
  return 0;
}

inline std::string_view text_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

inline std::span<const std::byte> bytes_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const std::byte*>(data), size};
}

/// Reads every byte, so that a sanitizer sees a view that ends outside its file.
inline void touch(std::span<const std::byte> bytes) {
  volatile unsigned sum = 0;
  for (const std::byte byte : bytes) sum = sum + static_cast<unsigned>(byte);
}

}  // namespace nibble
