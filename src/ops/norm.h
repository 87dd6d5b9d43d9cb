// rms_norm and layer_norm with gradients.
#pragma once

#include "autograd/tape.h"
#include "ops/backend.h"

namespace nibble::ops {

/// x (rows, cols) -> (rows, cols). Contract: kernels::RmsNormArgs. `weight` (cols) may be a parameter.
autograd::Var rms_norm(autograd::Tape& tape, const Backend& backend, const autograd::Var& x,
                       const autograd::Var& weight, float eps, float weight_offset);

/// Contract: kernels::LayerNormArgs. `bias` (cols) may be null.
autograd::Var layer_norm(autograd::Tape& tape, const Backend& backend, const autograd::Var& x,
                         const autograd::Var& weight, const autograd::Var& bias, float eps);

}  // namespace nibble::ops
