// Forward through matmul_dense, back through its two gradients.
#include "ops/matmul.h"

#include <algorithm>

#include "base/error.h"

namespace nibble::ops {

using autograd::gradient_of;
using autograd::Tape;
using autograd::Var;

Var matmul(Tape& tape, const Backend& backend, const Var& x, const Var& weight, const Var& bias) {
  const int64_t rows = weight->value.dim(0), cols = weight->value.dim(1), m = x->value.count() / cols;
  require(x->value.count() == m * cols, "matmul: found {} values, expected rows of {}", x->value.count(), cols);
  Var y = result_of(tape, Tensor(DType::f32, {m, rows}), {x.get(), weight.get(), bias.get()});
  const kernels::MatmulDenseJob job{
      weight->value.data(), DType::f32, rows, {y->value.as<float>(), rows, bias ? bias->value.as<float>() : nullptr}};
  backend.kernels().matmul_dense(backend.context(), {x->value.as<float>(), m, cols, DType::f32}, &job, 1);
  if (y->requires_grad)
    tape.record([&backend, x, weight, bias, y, m, rows, cols] {
      const auto* dy = y->grad.as<float>();
      const kernels::Context& context = backend.context_for(m * rows * cols / 64);
      if (x->requires_grad) {
        const auto dx = gradient_of(*x);
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
        const auto dw = gradient_of(*weight);
        backend.kernels().weight_gradient(context, {dy, x->value.as<float>(), m, rows, cols, dw.data, dw.accumulate});
      }
      if (bias && bias->requires_grad) {
        const auto db = gradient_of(*bias);
        if (!db.accumulate) std::fill_n(db.data, rows, 0.0f);
        for (int64_t i = 0; i < m; ++i)
          for (int64_t r = 0; r < rows; ++r) db.data[r] += dy[i * rows + r];
      }
      y->grad = {};
    });
  return y;
}

}  // namespace nibble::ops
