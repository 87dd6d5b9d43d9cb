// The one allowance on codes: another code only where y lies within 2 ulp of the threshold between the two.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/kernels.h"
#include "tensor/tensor.h"

namespace nibble::parity {

struct CodeDifferences {
  int64_t at_threshold = 0;  // allowed: y within 2 ulp of the threshold between neighbouring codes
  int64_t wrong = 0;         // all others
};

/// Compares 4-bit codes of x, with y = x / absmax of its block.
CodeDifferences compare_codes_4bit(const Tensor& x, int64_t block, const quant::CodeBook4Bit& code_book,
                                   std::span<const float> absmax, const uint8_t* ours, const uint8_t* theirs);

/// Compares 8-bit codes of x; thresholds are the fp32 midpoints of `code_book`.
CodeDifferences compare_codes_8bit(std::span<const float> x, int64_t block, const float* code_book,
                                   std::span<const float> absmax, const uint8_t* ours, const uint8_t* theirs);

}  // namespace nibble::parity
