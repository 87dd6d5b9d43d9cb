// Reading a checkpoint directory: safetensors, single or sharded, as named tensors over mapped files.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/tensor.h"

namespace nibble {

struct TensorInfo {
  std::string name;
  DType dtype;
  Shape shape;
  int64_t size_bytes = 0;
  std::string file;          // the file it lies in, for messages
  std::string dtype_name;    // as stored: "BF16", "Q4_K", ...
  bool is_supported = true;  // false: `dtype` means nothing and get() throws unsupported
};

/// A source of named tensors. Thread-safe to read.
class Checkpoint {
 public:
  /// A directory (model.safetensors, model.safetensors.index.json + shards, or the one *.safetensors it holds), or a
  /// .safetensors file, or a .gguf file decoded to bf16 (gguf_convert.h). Errors: not_found (no weights, a missing
  /// shard), corrupt_file (which file, what, expected).
  static std::shared_ptr<const Checkpoint> open(const std::filesystem::path& path);
  /// A safetensors file in memory, which must outlive the result and its tensors; `source` names it in errors.
  static std::shared_ptr<const Checkpoint> parse(std::span<const std::byte> bytes, std::string_view source);
  virtual ~Checkpoint() = default;

  /// In file order.
  virtual const std::vector<TensorInfo>& tensors() const = 0;
  virtual const TensorInfo* find(std::string_view name) const = 0;
  /// A view of the mapped file (a copy if the file holds it misaligned). Errors: not_found, unsupported (its dtype).
  virtual Tensor get(std::string_view name) const = 0;
  /// The tensor was read once and its pages may be dropped.
  virtual void release(std::string_view name) const = 0;
  /// Sum of the sizes of all tensors.
  int64_t size_bytes() const;
};

}  // namespace nibble
