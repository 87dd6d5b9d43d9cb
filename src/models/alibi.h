// ALiBi: a bias on attention scores that grows with the position of the key. https://arxiv.org/abs/2108.12409
#pragma once

#include <cstdint>
#include <vector>

#include "nibble/types.h"

namespace nibble::models {

/// The paper's slopes for `heads` heads: powers of 2^(-8 / n), n the largest power of two within; heads past n take
/// every other power of the next larger n. Rounded to `dtype`, f32 or bf16.
std::vector<float> alibi_slopes(int64_t heads, DType dtype = DType::f32);

}  // namespace nibble::models
