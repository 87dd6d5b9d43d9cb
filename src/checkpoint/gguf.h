// Reading GGUF files: metadata, tensors, and their block types decoded to floats.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
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
  uint32_t type;    // ggml type number
  Shape shape;      // row-major: outermost first
  uint64_t offset;  // from the start of the file
  int64_t size_bytes;
};

/// A mapped GGUF file, versions 2 and 3. Immutable; thread-safe. Errors: corrupt_file, unsupported (type named).
class GgufFile {
 public:
  static std::shared_ptr<const GgufFile> open(const std::filesystem::path& path);
  /// The bytes must outlive the result; `source` names them in errors.
  static std::shared_ptr<const GgufFile> parse(std::span<const std::byte> bytes, std::string_view source);

  const std::string& source() const { return source_; }
  const std::vector<std::pair<std::string, GgufValue>>& metadata() const { return metadata_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  /// nullptr if there is none.
  const GgufValue* find(std::string_view key) const;
  const GgufTensor* find_tensor(std::string_view name) const;

  /// Typed values: nullopt or nullptr if the key is missing. Errors: corrupt_file if it has another type.
  std::optional<int64_t> find_integer(std::string_view key) const;
  std::optional<double> find_number(std::string_view key) const;
  std::optional<bool> find_bool(std::string_view key) const;
  const std::string* find_text(std::string_view key) const;
  const GgufArray* find_array(std::string_view key) const;
  /// As find_integer; a missing key is corrupt_file.
  int64_t get_integer(std::string_view key) const;

  /// Decodes a tensor to fp32 and rounds once to `dtype` (f32, bf16 or f16). Errors: unsupported type.
  Tensor decode(const GgufTensor& tensor, DType dtype) const;
  /// The tensor was read once and its pages may be dropped.
  void release(const GgufTensor& tensor) const;

 private:
  friend class GgufParser;
  [[noreturn]] void wrong_type(std::string_view key, std::string_view expected) const;

  std::string source_;
  std::shared_ptr<const MappedFile> file_;
  std::span<const std::byte> bytes_;
  std::vector<std::pair<std::string, GgufValue>> metadata_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string_view, size_t> metadata_index_;
  std::unordered_map<std::string_view, size_t> tensor_index_;
};

/// Decodes `count` values (whole blocks) of ggml type `type`; all their bytes are there, checked by the caller.
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
