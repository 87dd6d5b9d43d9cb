// Forward through matmul_dense, back through its two gradients.
#include "ops/matmul.h"

#include <vector>

#include "base/error.h"
#include "ops/gradient.h"

namespace nibble::ops {

using autograd::Tape;
using autograd::Var;

Var matmul(Tape& tape, const Backend& backend, const Var& x, const Var& weight, const Var& bias) {
  const int64_t rows = weight->value.dim(0), cols = weight->value.dim(1), m = x->value.count() / cols;
  require(x->value.count() == m * cols, "matmul: found {} values, expected rows of {}", x->value.count(), cols);
  Var y = result_of(tape, backend.empty(DType::f32, {m, rows}), {x.get(), weight.get(), bias.get()});
  const kernels::MatmulDenseJob job{
      weight->value.data(), DType::f32, rows, {y->value.as<float>(), rows, bias ? bias->value.as<float>() : nullptr}};
  backend.kernels().matmul_dense(backend.context(), {x->value.as<float>(), m, cols, DType::f32}, &job, 1);
  if (y->requires_grad)
    tape.record([&backend, x, weight, bias, y, m, rows, cols] {
      const auto* dy = y->grad.as<float>();
      const kernels::Context& context = backend.context_for(m * rows * cols / 64);
      if (x->requires_grad) {
        const auto dx = gradient_of(backend, *x);
        backend.kernels().input_gradient(context, {dy,
                                                   rows,
                                                   m,
                                                   rows,
                                                   cols,
                                                   {kernels::WeightView::Kind::dense, weight->value.data(), DType::f32},
                                                   dx.data,
                                                   dx.accumulate});
      }
      if (weight->requires_grad) {
        const auto dw = gradient_of(backend, *weight);
        backend.kernels().weight_gradient(context, {dy, x->value.as<float>(), m, rows, cols, dw.data, dw.accumulate});
      }
      if (bias && bias->requires_grad) {
        // The sum of rows is a product with ones.
        const std::vector<float> ones(static_cast<size_t>(m), 1.0f);
        Tensor column = backend.empty(DType::f32, {m});
        backend.upload(column.data(), ones.data(), column.size_bytes());
        const auto db = gradient_of(backend, *bias);
        backend.kernels().weight_gradient(context, {dy, column.as<float>(), m, rows, 1, db.data, db.accumulate});
      }
      y->grad = {};
    });
  return y;
}

}  // namespace nibble::ops
