// Adds by the kernel, so that the order of sums is its own.
#include "ops/gradient.h"

namespace nibble::ops {

Tensor empty_like(const Backend& backend, const Tensor& x) { return backend.empty(x.dtype(), x.shape()); }

GradientTarget gradient_of(const Backend& backend, autograd::Variable& variable) {
  const bool has_gradient = static_cast<bool>(variable.grad);
  if (!has_gradient) variable.grad = empty_like(backend, variable.value);
  return {variable.grad.as<float>(), has_gradient};
}

float* gradient_sum_of(const Backend& backend, const autograd::Var& variable) {
  if (!variable || !variable->requires_grad) return nullptr;
  const GradientTarget target = gradient_of(backend, *variable);
  if (!target.accumulate) backend.fill_zero(target.data, variable->grad.size_bytes());
  return target.data;
}

void add_gradient(const Backend& backend, const autograd::Var& x, Tensor fresh) {
  if (!x->requires_grad) return;
  if (!x->grad) {
    x->grad = std::move(fresh);
    return;
  }
  backend.kernels().add_scaled(backend.context_for(fresh.count()),
                               {fresh.as<float>(), fresh.count(), 1, x->grad.as<float>(), fresh.dtype()});
}

}  // namespace nibble::ops
