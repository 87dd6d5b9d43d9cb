// Goldens: what another library computed, read from a safetensors file in tests/data.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace nibble::parity {

class Golden {
 public:
  /// `path` below tests/data.
  explicit Golden(std::string_view path);

  bool has(const std::string& name) const { return checkpoint_->find(name) != nullptr; }
  /// A missing name throws.
  Tensor get(const std::string& name) const { return checkpoint_->get(name); }
  /// Names that end in `suffix`, without it.
  std::vector<std::string> cases(std::string_view suffix) const;

 private:
  std::shared_ptr<const Checkpoint> checkpoint_;
};

/// Field `index` of "a.b.c".
std::string field(std::string_view text, size_t index);

/// "f32", "bf16" or "f16" as they stand in names of goldens.
DType dtype_named(std::string_view name);

/// Element as float.
float at(const Tensor& tensor, int64_t i);

/// Elements whose bytes differ; all NaN count as one value.
int64_t differences(const Tensor& a, const Tensor& b);

/// Floats between a and b; large if their signs differ or one is NaN.
int64_t ulps_between(float a, float b);

}  // namespace nibble::parity
