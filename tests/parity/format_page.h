// The fenced `example` blocks of the pages in docs/formats, and numbers as those pages write them.
#pragma once

#include <fmt/ranges.h>

#include <map>
#include <string>
#include <vector>

namespace nibble::parity {

using Example = std::map<std::string, std::string>;

std::vector<Example> examples_of(const std::string& page);

/// Words as floats; "-0" keeps its sign.
std::vector<float> numbers(const std::string& text);

/// Bit patterns of floats: "3f800000 nan".
std::string bits(const std::vector<float>& values);

/// Bytes: "00 ff".
std::string hex(const void* data, size_t size);

template <typename T>
std::string decimal(const std::vector<T>& values) {
  return fmt::format("{}", fmt::join(values, " "));
}

}  // namespace nibble::parity
