// y = x w^T + bias with gradients in all three: a linear layer whose weight is trained.
#pragma once

#include "autograd/tape.h"
#include "ops/backend.h"

namespace nibble::ops {

/// x (m, cols), weight (rows, cols), bias (rows) or null -> (m, rows), all f32.
autograd::Var matmul(autograd::Tape& tape, const Backend& backend, const autograd::Var& x, const autograd::Var& weight,
                     const autograd::Var& bias);

}  // namespace nibble::ops
