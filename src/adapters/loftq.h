// LoftQ: an adapter that starts as what quantization took away (Li et al., 2023, https://arxiv.org/abs/2310.08659).
#pragma once

#include "adapters/lora.h"
#include "checkpoint/checkpoint.h"

namespace nibble::adapters {

/// scale * B A of every layer becomes an approximation of W - Q, W from `original` and Q as the model holds it. (PEFT
/// leaves the scale out of account: there it holds for lora_alpha = r alone.) Errors: invalid_argument for a target
/// that is not quantized, or quantized in `original`, too.
void start_from_quantization_error(Adapter& adapter, const models::Decoder& model, const Checkpoint& original,
                                   uint64_t seed);

}  // namespace nibble::adapters
