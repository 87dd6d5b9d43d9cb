// The header of a safetensors file: parsed with every claim checked against the file's size
// (docs/formats/safetensors.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/tensor.h"

namespace nibble {

/// A header longer than this is refused, as by the format's own library.
inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;

struct SafetensorsEntry {
  std::string name;
  std::string dtype_name;      // as stored: "BF16", "F8_E4M3", ...
  std::optional<DType> dtype;  // none: a known type that nibble has no arithmetic for
  Shape shape;
  int64_t begin = 0;  // bytes from the start of the file
  int64_t end = 0;
};

/// Entries by ascending position. `file` is the whole file. Errors: corrupt_file, naming `source`, tensor, found and
/// expected.
std::vector<SafetensorsEntry> parse_safetensors_header(std::span<const std::byte> file, std::string_view source);

/// Name of a type in the header: "F32", "BF16", "U8", ...
std::string_view safetensors_dtype_name(DType dtype);

}  // namespace nibble
