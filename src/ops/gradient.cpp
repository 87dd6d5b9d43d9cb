// Adds by the kernel, so that the order of sums is its own.
#include "ops/gradient.h"

namespace nibble::ops {

void add_gradient(const Backend& backend, const autograd::Var& x, Tensor fresh) {
  if (!x->requires_grad) return;
  if (!x->grad) {
    x->grad = std::move(fresh);
    return;
  }
  backend.kernels().add_scaled(backend.context_for(fresh.count()),
                               {fresh.as<float>(), fresh.count(), 1, x->grad.as<float>()});
}

}  // namespace nibble::ops
