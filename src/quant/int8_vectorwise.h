// LLM.int8() as arithmetic on one element; the loops over rows are kernels.
#pragma once

#include <cstdint>

namespace nibble::quant {

/// q -> q * absmax * kInt8Step: fp32(1 / 127).
inline constexpr float kInt8Step = 1.0f / 127.0f;

/// rint(x * scale), half to even, for scale = 127 * (1 / absmax); NaN (also 0 * inf, in a row of zeros) is 0, and
/// magnitudes stop at 127.
int8_t encode_int8(float x, float scale);

}  // namespace nibble::quant
