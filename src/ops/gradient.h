// Where a freshly made gradient goes.
#pragma once

#include "autograd/tape.h"
#include "ops/backend.h"

namespace nibble::ops {

/// Adds `fresh` to the gradient of x, or becomes it; drops it if x wants none.
void add_gradient(const Backend& backend, const autograd::Var& x, Tensor fresh);

}  // namespace nibble::ops
