// RMSNorm and LayerNorm with their weights in fp32.
#pragma once

#include "nn/values.h"
#include "ops/backend.h"
#include "tensor/tensor.h"

namespace nibble::nn {

enum class NormKind : uint8_t { rms, layer };

struct Norm {
  NormKind kind = NormKind::rms;
  Tensor weight;  // f32 (cols), or of a LayerNorm (sets, cols): row r takes set r % sets
  Tensor bias;    // the same, or empty
  float eps = 1e-6f;
  float weight_offset = 0;  // 1 for Gemma: the stored weight is the factor minus one

  int64_t cols() const { return weight.shape().back(); }
};

/// out (rows, cols) = norm of x; out may be x, of the same type.
void run_norm(const ops::Backend& backend, const Norm& norm, ConstValues x, int64_t rows, Values out);
/// out += norm of x. Errors: unsupported for a LayerNorm.
void add_norm(const ops::Backend& backend, const Norm& norm, ConstValues x, int64_t rows, Values out);

}  // namespace nibble::nn
