// A linear layer whose weight is frozen, with a trained update of low rank beside it (Hu et al., 2021,
// https://arxiv.org/abs/2106.09685; over 4-bit weights: Dettmers et al., 2023, https://arxiv.org/abs/2305.14314).
#pragma once

#include "autograd/tape.h"
#include "nn/linear.h"

namespace nibble::nn {

/// y += scale * B (A dropout(x)).
struct Lora {
  autograd::Var a;  // (r, cols)
  autograd::Var b;  // (rows, r)
  float scale = 1;
  float dropout = 0;
  autograd::Var magnitude = nullptr;  // DoRA (dora.h): (rows); else null
};

/// y (m, rows) = x w^T + bias, and `lora` of it unless null. The gradient goes to x and to the lora's a and b; that of
/// the frozen weight is never formed. `seed` chooses what dropout leaves out. `layer` and `lora` must outlive the
/// backward pass. `needs_value`: false where the result was computed before and only the way back is wanted; then y has
/// no value.
autograd::Var linear(autograd::Tape& tape, const ops::Backend& backend, const autograd::Var& x, const Linear& layer,
                     const Lora* lora = nullptr, uint64_t seed = 0, bool needs_value = true);

/// The weight as the gradient kernels take it; valid as long as `layer` and `absmax`, which 4-bit weights point to.
kernels::WeightView view_of(const Linear& layer, kernels::Absmax& absmax);

/// What the way back through the weight rounds to before it multiplies: bf16 if the way forward does, else f32.
DType gradient_compute_of(const Linear& layer);

}  // namespace nibble::nn
