// The norms keep their inputs; statistics are computed anew.
#include "ops/norm.h"

#include <algorithm>

#include "base/error.h"

namespace nibble::ops {
namespace {

using autograd::gradient_of;
using autograd::Tape;
using autograd::Var;

struct Rows {
  int64_t rows, cols;
};

Rows rows_of(const Var& x, const Var& weight, const char* op) {
  const int64_t cols = weight->value.count();
  require(cols > 0 && x->value.count() % cols == 0, "{}: found {} values, expected rows of {}", op, x->value.count(),
          cols);
  return {x->value.count() / cols, cols};
}

/// A gradient that kernels always add to: of a parameter, or null.
float* added_to(const Var& variable) {
  if (!variable || !variable->requires_grad) return nullptr;
  const autograd::GradientTarget target = gradient_of(*variable);
  if (!target.accumulate) std::fill_n(target.data, variable->grad.count(), 0.0f);
  return target.data;
}

/// dx, or a scratch tensor where x wants none.
autograd::GradientTarget input_target(const Var& x, Tensor& unwanted) {
  if (x->requires_grad) return gradient_of(*x);
  unwanted = Tensor(DType::f32, x->value.shape());
  return {unwanted.as<float>(), false};
}

}  // namespace

Var rms_norm(Tape& tape, const Backend& backend, const Var& x, const Var& weight, float eps, float weight_offset) {
  const Rows n = rows_of(x, weight, "rms_norm");
  Var y = result_of(tape, Tensor(DType::f32, x->value.shape()), {x.get(), weight.get()});
  backend.kernels().rms_norm(
      backend.context_for(x->value.count()),
      {x->value.as<float>(), weight->value.as<float>(), n.rows, n.cols, eps, weight_offset, y->value.as<float>()});
  if (y->requires_grad)
    tape.record([&backend, x, weight, y, n, eps, weight_offset] {
      Tensor unwanted;
      const auto dx = input_target(x, unwanted);
      backend.kernels().rms_norm_gradient(backend.context_for(x->value.count()),
                                          {x->value.as<float>(), weight->value.as<float>(), y->grad.as<float>(), n.rows,
                                           n.cols, eps, weight_offset, dx.data, added_to(weight), dx.accumulate});
      y->grad = {};
    });
  return y;
}

Var layer_norm(Tape& tape, const Backend& backend, const Var& x, const Var& weight, const Var& bias, float eps) {
  const Rows n = rows_of(x, weight, "layer_norm");
  Var y = result_of(tape, Tensor(DType::f32, x->value.shape()), {x.get(), weight.get(), bias.get()});
  backend.kernels().layer_norm(backend.context_for(x->value.count()),
                               {x->value.as<float>(), weight->value.as<float>(),
                                bias ? bias->value.as<float>() : nullptr, n.rows, n.cols, eps, y->value.as<float>()});
  if (y->requires_grad)
    tape.record([&backend, x, weight, bias, y, n, eps] {
      Tensor unwanted;
      const auto dx = input_target(x, unwanted);
      backend.kernels().layer_norm_gradient(
          backend.context_for(x->value.count()),
          {x->value.as<float>(), weight->value.as<float>(), y->grad.as<float>(), n.rows, n.cols, eps, dx.data,
           added_to(weight), added_to(bias), dx.accumulate});
      y->grad = {};
    });
  return y;
}

}  // namespace nibble::ops
