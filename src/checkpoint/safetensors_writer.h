// Writing safetensors, one tensor at a time, sharded by size, with the index that transformers reads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/tensor.h"

namespace nibble {

/// What will be written; the header of a safetensors file comes first, so all shapes are known before the first byte.
struct PlannedTensor {
  std::string name;
  DType dtype;
  Shape shape;
};

/// Writes model.safetensors, or model-0000i-of-0000n.safetensors and model.safetensors.index.json when the tensors
/// exceed `max_shard_size_bytes`. Metadata {"format": "pt"}. Tensors must come in the planned order.
class SafetensorsWriter {
 public:
  /// `stem` stands in place of "model".
  SafetensorsWriter(std::filesystem::path directory, std::vector<PlannedTensor> tensors, int64_t max_shard_size_bytes,
                    std::string stem = "model");
  ~SafetensorsWriter();
  /// `bytes` must have the planned size. Errors: invalid_argument (out of order, wrong size), io.
  void write(std::string_view name, std::span<const std::byte> bytes);
  /// Closes the last file and writes the index. Errors: invalid_argument (tensors missing), io.
  void finish();
  int64_t bytes_written() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace nibble
