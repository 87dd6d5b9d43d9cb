// PiSSA: an adapter that starts as the largest part of its weights, beside what is left of them (Meng et al., 2024,
// https://arxiv.org/abs/2404.02948); and OLoRA, which starts as their part along orthonormal directions
// (Büyükakyüz, 2024, https://arxiv.org/abs/2406.01775).
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "adapters/lora.h"
#include "checkpoint/checkpoint.h"

namespace nibble::adapters {

/// "pissa" and "pissa_niter_N" of init_lora_weights.
bool is_pissa(const std::string& init_lora_weights);
/// The same and "olora": starts that are taken off the weights.
bool is_taken_off(const std::string& init_lora_weights);
/// N, or nothing for "pissa": until the singular vectors settle. Errors: invalid_argument.
std::optional<int> pissa_rounds(const std::string& init_lora_weights);

/// A and B of every layer become the first singular vectors of its weight (olora: the first part of its QR
/// decomposition), of `original` where that is not quantized, else of what the model holds; the layer's residual,
/// weight - scale B A, is stored as the model stores the weight. Where that is not quantized, AdapterLayer::start_a and
/// start_b are what to take off again. Errors: invalid_argument for a rank above a weight's smaller side.
void start_from_principal_part(Adapter& adapter, const models::Decoder& model, const Checkpoint& original,
                               uint64_t seed);

/// An adapter of twice the rank for the original weights: W - scale B0 A0 + scale B A, as PEFT's save_pretrained gives
/// with path_initial_model_for_weight_conversion. A copy if no layer has a start.
Adapter onto_original(const Adapter& adapter);
/// What onto_original was given: its first half.
Adapter trained_half(const Adapter& adapter);

/// For an adapter that PEFT saved with "pissa" or "olora": takes its start off, as PEFT does when it loads one.
/// `weight_of` gives a module's weight (out, in) in f32. Errors: unsupported for "pissa_niter_N", whose start is
/// random.
void take_principal_part_off(Adapter& adapter, const ops::Backend& backend,
                             const std::function<Tensor(const std::string& module)>& weight_of);

}  // namespace nibble::adapters
