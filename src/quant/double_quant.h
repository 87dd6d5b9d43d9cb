// Double quantization: the absmax of a 4-bit tensor, itself quantized to 8 bits around its mean.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace nibble::quant {

/// A compressed absmax. absmax[b] = kDynamicSigned[codes[b]] * absmax[b / kNestedBlock] + offset, both operations
/// rounded.
struct NestedAbsmax {
  std::vector<uint8_t> codes;  // (blocks)
  std::vector<float> absmax;   // (ceil(blocks / 256))
  float offset = 0;
};

/// fp32(sum in double) * fp32(1 / count): the mean as torch takes it on CUDA, with the sum rounded once. 0 for none.
float mean_offset(std::span<const float> absmax);

/// Quantizes absmax - mean in blocks of kNestedBlock with the signed dynamic map.
NestedAbsmax compress_absmax(std::span<const float> absmax);

/// The same around a given offset.
NestedAbsmax compress_absmax(std::span<const float> absmax, float offset);

/// The inverse: out[b] for every code. Sizes must agree: out and codes (blocks), nested_absmax (ceil(blocks / 256)).
void expand_absmax(std::span<const uint8_t> codes, std::span<const float> nested_absmax, const float* nested_code_book,
                   float offset, std::span<float> out);

}  // namespace nibble::quant
