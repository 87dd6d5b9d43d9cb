// Where gradients go.
#pragma once

#include "autograd/tape.h"
#include "ops/backend.h"

namespace nibble::ops {

/// An uninitialized tensor like `x`, where kernels reach it.
Tensor empty_like(const Backend& backend, const Tensor& x);

/// Where a gradient of `variable` goes: written if nothing has flowed in yet, else added to.
struct GradientTarget {
  float* data;  // or bf16, as the variable's value
  bool accumulate;
};
GradientTarget gradient_of(const Backend& backend, autograd::Variable& variable);
/// The same for what kernels always add to; null where there is no variable, or none that wants a gradient.
float* gradient_sum_of(const Backend& backend, const autograd::Var& variable);

/// Adds `fresh` to the gradient of x, or becomes it; drops it if x wants none.
void add_gradient(const Backend& backend, const autograd::Var& x, Tensor fresh);

}  // namespace nibble::ops
