// DoRA: a low-rank update whose rows are brought to a trained length (Liu et al., 2024,
// https://arxiv.org/abs/2402.09353).
#pragma once

#include "autograd/tape.h"
#include "nn/lora.h"

namespace nibble::nn {

/// The weight of a layer in f32 (rows, cols), where kernels reach it.
Tensor plain_weight(const ops::Backend& backend, const Linear& layer);

/// 1 / |row of W + scale B A| for each row, f32 (rows), where kernels reach it.
Tensor inverse_row_norms(const ops::Backend& backend, const Linear& layer, const Lora& lora);

/// A layer without its bias, and its update without dropout: what dora_linear multiplies with; and inverse_row_norms
/// as of the last refresh().
struct DoraParts {
  Linear bare;
  Lora undropped;
  Tensor inverse;
};
DoraParts dora_parts(const Linear& layer, const Lora& lora);
/// To be called whenever the update has changed.
void refresh(const ops::Backend& backend, DoraParts& parts);

/// y = f u + bias with u = W x + scale B A x, f = lora.magnitude * parts.inverse, which counts as a constant. With
/// dropout d: y = W (x - d(x)) + f u(d(x)) + bias, as PEFT. Everything must outlive the backward pass.
autograd::Var dora_linear(autograd::Tape& tape, const ops::Backend& backend, const autograd::Var& x,
                          const Linear& layer, const DoraParts& parts, float dropout, uint64_t seed);

}  // namespace nibble::nn
