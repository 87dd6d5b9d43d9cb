// Activations on their way between kernels: fp32, or bf16 on a GPU.
#pragma once

#include <cstdint>

#include "nibble/types.h"

namespace nibble::nn {

/// An array that kernels write and read.
struct Values {
  void* data = nullptr;
  DType dtype = DType::f32;

  Values() = default;
  Values(void* values, DType type) : data(values), dtype(type) {}
  Values(float* values) : data(values) {}

  /// From element `count` on.
  Values at(int64_t count) const { return {static_cast<char*>(data) + count * size_of(dtype), dtype}; }
};

/// The same, only to be read.
struct ConstValues {
  const void* data = nullptr;
  DType dtype = DType::f32;

  ConstValues() = default;
  ConstValues(const void* values, DType type) : data(values), dtype(type) {}
  ConstValues(const float* values) : data(values) {}
  ConstValues(Values values) : data(values.data), dtype(values.dtype) {}
};

}  // namespace nibble::nn
