// Throwing nibble::Error with a formatted message.
#pragma once

#include <fmt/format.h>

#include <utility>

#include "nibble/types.h"

namespace nibble {

/// Throws Error{code} with a message that names what, where and the values.
template <typename... Args>
[[noreturn]] void fail(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}

/// Throws invalid_argument unless `condition` holds.
template <typename... Args>
void require(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) throw Error(ErrorCode::invalid_argument, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace nibble
