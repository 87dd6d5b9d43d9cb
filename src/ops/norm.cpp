// The norms keep their inputs; statistics are computed anew.
#include "ops/norm.h"

#include "base/error.h"
#include "ops/gradient.h"

namespace nibble::ops {
namespace {

using autograd::Tape;
using autograd::Var;

struct Rows {
  int64_t rows, cols;
};

Rows rows_of(const Var& x, const Var& weight, const char* op) {
  const int64_t cols = weight->value.shape().back();
  require(cols > 0 && x->value.count() % cols == 0, "{}: found {} values, expected rows of {}", op, x->value.count(),
          cols);
  return {x->value.count() / cols, cols};
}

/// dx, or a scratch tensor where x wants none.
GradientTarget input_target(const Backend& backend, const Var& x, Tensor& unwanted) {
  if (x->requires_grad) return gradient_of(backend, *x);
  unwanted = empty_like(backend, x->value);
  return {unwanted.as<float>(), false};
}

}  // namespace

Var rms_norm(Tape& tape, const Backend& backend, const Var& x, const Var& weight, float eps, float weight_offset) {
  const Rows n = rows_of(x, weight, "rms_norm");
  Var y = result_of(tape, empty_like(backend, x->value), {x.get(), weight.get()});
  backend.kernels().rms_norm(backend.context_for(x->value.count()),
                             {x->value.as<float>(), weight->value.as<float>(), n.rows, n.cols, eps, weight_offset,
                              y->value.data(), false, x->value.dtype(), x->value.dtype()});
  if (y->requires_grad)
    tape.record([&backend, x, weight, y, n, eps, weight_offset] {
      Tensor unwanted;
      const auto dx = input_target(backend, x, unwanted);
      backend.kernels().rms_norm_gradient(
          backend.context_for(x->value.count()),
          {x->value.as<float>(), weight->value.as<float>(), y->grad.as<float>(), n.rows, n.cols, eps, weight_offset,
           dx.data, gradient_sum_of(backend, weight), dx.accumulate, x->value.dtype()});
      y->grad = {};
    });
  return y;
}

Var layer_norm(Tape& tape, const Backend& backend, const Var& x, const Var& weight, const Var& bias, float eps) {
  const Rows n = rows_of(x, weight, "layer_norm");
  Var y = result_of(tape, empty_like(backend, x->value), {x.get(), weight.get(), bias.get()});
  backend.kernels().layer_norm(
      backend.context_for(x->value.count()),
      {x->value.as<float>(), weight->value.as<float>(), bias ? bias->value.as<float>() : nullptr, n.rows, n.cols, eps,
       y->value.data(), weight->value.count() / n.cols, x->value.dtype(), x->value.dtype()});
  if (y->requires_grad)
    tape.record([&backend, x, weight, bias, y, n, eps] {
      Tensor unwanted;
      const auto dx = input_target(backend, x, unwanted);
      backend.kernels().layer_norm_gradient(
          backend.context_for(x->value.count()),
          {x->value.as<float>(), weight->value.as<float>(), y->grad.as<float>(), n.rows, n.cols, eps, dx.data,
           gradient_sum_of(backend, weight), gradient_sum_of(backend, bias), dx.accumulate, x->value.dtype(),
           weight->value.count() / n.cols});
      y->grad = {};
    });
  return y;
}

}  // namespace nibble::ops
