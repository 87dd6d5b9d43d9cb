// Ops on elements, with gradients: activations, sums, dropout.
#pragma once

#include <cstdint>

#include "autograd/tape.h"
#include "ops/backend.h"

namespace nibble::ops {

/// out (rows, cols) = act(gate) * up from x (rows, [gate | up]); Contract: kernels::ActivateArgs.
autograd::Var activate_gated(autograd::Tape& tape, const Backend& backend, const autograd::Var& x,
                             kernels::Activation activation);
/// The same from two arrays of one shape.
autograd::Var activate_times(autograd::Tape& tape, const Backend& backend, const autograd::Var& gate,
                             const autograd::Var& up, kernels::Activation activation);
/// out = act(x), of the same shape.
autograd::Var activate(autograd::Tape& tape, const Backend& backend, const autograd::Var& x,
                       kernels::Activation activation);

/// a + b, of the same shape. b gives up its value, which no step before may need on the way back. `needs_value`: false
/// where the result was computed before and only the way back is wanted; then y has no value.
autograd::Var add(autograd::Tape& tape, const Backend& backend, const autograd::Var& a, const autograd::Var& b,
                  bool needs_value = true);

/// Contract: kernels::DropoutArgs; p = 0 gives x itself.
autograd::Var dropout(autograd::Tape& tape, const Backend& backend, const autograd::Var& x, float p, uint64_t seed);

}  // namespace nibble::ops
