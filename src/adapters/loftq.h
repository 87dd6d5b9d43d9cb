// LoftQ: an adapter that starts as what quantization took away (Li et al., 2023, https://arxiv.org/abs/2310.08659).
#pragma once

#include "adapters/lora.h"
#include "checkpoint/checkpoint.h"

namespace nibble::adapters {

/// left (rows, rank) . right (rank, cols), near the best such product for a matrix (rows, cols) in f32.
struct Factors {
  Tensor left, right;  // f32, in main memory
};
/// By subspace iteration from a random start (Halko et al., 2011, https://arxiv.org/abs/0909.4061): sketches of
/// `rank` + 10 vectors, made orthonormal in double. Both factors have the square roots of the singular values.
Factors factorize(const ops::Backend& backend, const Tensor& matrix, int64_t rank, uint64_t seed);

/// scale * B A of every layer becomes an approximation of W - Q, W from `original` and Q as the model holds it. (PEFT
/// leaves the scale out of account: there it holds for lora_alpha = r alone.) Errors: invalid_argument for a target
/// that is not quantized, or quantized in `original`, too.
void start_from_quantization_error(Adapter& adapter, const models::Decoder& model, const Checkpoint& original,
                                   uint64_t seed);

}  // namespace nibble::adapters
