// Reading GGUF files: metadata, tensors, and their block types decoded to floats.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/mapped_file.h"
#include "tensor/tensor.h"

namespace nibble {

struct GgufValue;
using GgufArray = std::vector<GgufValue>;
struct GgufValue {
  std::variant<std::monostate, bool, int64_t, uint64_t, double, std::string, GgufArray> value;
};

struct GgufTensor {
  std::string name;
  uint32_t type;  // ggml type number
  Shape shape;    // row-major: outermost first
  uint64_t offset;
  int64_t size_bytes;
};

/// A mapped GGUF file, versions 2 and 3. Errors: corrupt_file, unsupported (type named).
class GgufFile {
 public:
  static std::shared_ptr<const GgufFile> open(const std::filesystem::path& path);
  static std::shared_ptr<const GgufFile> parse(std::span<const std::byte> bytes, std::string_view source);

  const GgufValue* find(std::string_view key) const;
  const std::vector<std::pair<std::string, GgufValue>>& metadata() const { return metadata_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  /// Decodes a tensor to fp32 and rounds once to `dtype`. Errors: unsupported type.
  Tensor decode(const GgufTensor& tensor, DType dtype) const;

 private:
  friend struct GgufParser;
  std::string source_;
  std::shared_ptr<const MappedFile> file_;
  std::span<const std::byte> bytes_;
  std::vector<std::pair<std::string, GgufValue>> metadata_;
  std::vector<GgufTensor> tensors_;
};

/// Decodes `count` values of ggml type `type` from `blocks` (fully inside bounds, checked by the caller).
/// Returns false for a type that is not supported.
bool decode_ggml_blocks(uint32_t type, const std::byte* blocks, int64_t count, float* out);

/// Name ("Q4_K"), values a block and bytes a block of a ggml type; nullptr if unknown.
struct GgmlType {
  uint32_t type;
  const char* name;
  int64_t block_values;
  int64_t block_bytes;
};
const GgmlType* find_ggml_type(uint32_t type);

}  // namespace nibble
