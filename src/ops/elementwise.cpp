// Forward, then the step that goes back.
#include "ops/elementwise.h"

#include <cstring>

#include "base/error.h"
#include "ops/gradient.h"

namespace nibble::ops {
namespace {

using autograd::gradient_of;
using autograd::GradientTarget;
using autograd::Tape;
using autograd::Var;

Var activate_rows(Tape& tape, const Backend& backend, const Var& x, kernels::Activation activation, bool is_gated) {
  const int64_t rows = x->value.dim(0), stride = x->value.dim(1), cols = is_gated ? stride / 2 : stride;
  Var y = result_of(tape, Tensor(DType::f32, {rows, cols}), {x.get()});
  const auto* gate = x->value.as<float>();
  backend.kernels().activate(backend.context_for(rows * cols), {gate, is_gated ? gate + cols : nullptr, stride, rows,
                                                                cols, activation, y->value.as<float>()});
  if (y->requires_grad)
    tape.record([&backend, x, y, activation, is_gated, rows, cols, stride] {
      // The kernel writes; what flowed in before is added after.
      Tensor before = std::move(x->grad);
      x->grad = Tensor(DType::f32, x->value.shape());
      const auto* gate = x->value.as<float>();
      auto* dgate = x->grad.as<float>();
      backend.kernels().activate_gradient(backend.context_for(rows * cols),
                                          {gate, is_gated ? gate + cols : nullptr, stride, y->grad.as<float>(), rows,
                                           cols, activation, dgate, is_gated ? dgate + cols : nullptr});
      if (before)
        backend.kernels().add_scaled(backend.context_for(before.count()),
                                     {before.as<float>(), before.count(), 1, dgate});
      y->grad = {};
    });
  return y;
}

/// Adds the gradient of y to that of x.
void flow(const Backend& backend, const Var& y, const Var& x) {
  if (!x->requires_grad) return;
  const GradientTarget target = gradient_of(*x);
  const int64_t count = y->grad.count();
  if (target.accumulate)
    backend.kernels().add_scaled(backend.context_for(count), {y->grad.as<float>(), count, 1, target.data});
  else
    std::memcpy(target.data, y->grad.data(), static_cast<size_t>(y->grad.size_bytes()));
}

}  // namespace

Var activate_times(Tape& tape, const Backend& backend, const Var& gate, const Var& up, kernels::Activation activation) {
  require(gate->value.shape() == up->value.shape(), "activate_times: found shapes {} and {}, expected the same",
          to_string(gate->value.shape()), to_string(up->value.shape()));
  const int64_t rows = gate->value.dim(0), cols = gate->value.dim(1), count = rows * cols;
  Var y = result_of(tape, Tensor(DType::f32, {rows, cols}), {gate.get(), up.get()});
  backend.kernels().activate(backend.context_for(count), {gate->value.as<float>(), up->value.as<float>(), cols, rows,
                                                          cols, activation, y->value.as<float>()});
  if (y->requires_grad)
    tape.record([&backend, gate, up, y, activation, rows, cols, count] {
      Tensor dgate(DType::f32, gate->value.shape()), dup(DType::f32, up->value.shape());
      backend.kernels().activate_gradient(
          backend.context_for(count), {gate->value.as<float>(), up->value.as<float>(), cols, y->grad.as<float>(), rows,
                                       cols, activation, dgate.as<float>(), dup.as<float>()});
      add_gradient(backend, gate, std::move(dgate));
      add_gradient(backend, up, std::move(dup));
      y->grad = {};
    });
  return y;
}

Var activate_gated(Tape& tape, const Backend& backend, const Var& x, kernels::Activation activation) {
  require(x->value.shape().size() == 2 && x->value.dim(1) % 2 == 0,
          "activate_gated: found shape {}, expected two halves", to_string(x->value.shape()));
  return activate_rows(tape, backend, x, activation, true);
}

Var activate(Tape& tape, const Backend& backend, const Var& x, kernels::Activation activation) {
  return activate_rows(tape, backend, x, activation, false);
}

Var add(Tape& tape, const Backend& backend, const Var& a, const Var& b) {
  require(a->value.shape() == b->value.shape(), "add: found shapes {} and {}, expected the same",
          to_string(a->value.shape()), to_string(b->value.shape()));
  Var y = result_of(tape, Tensor(DType::f32, a->value.shape()), {a.get(), b.get()});
  const int64_t count = a->value.count();
  std::memcpy(y->value.data(), a->value.data(), static_cast<size_t>(a->value.size_bytes()));
  backend.kernels().add_scaled(backend.context_for(count), {b->value.as<float>(), count, 1, y->value.as<float>()});
  if (y->requires_grad)
    tape.record([&backend, a, b, y] {
      flow(backend, y, a);
      flow(backend, y, b);
      y->grad = {};
    });
  return y;
}

Var dropout(Tape& tape, const Backend& backend, const Var& x, float p, uint64_t seed) {
  if (p == 0) return x;
  const int64_t count = x->value.count();
  Var y = result_of(tape, Tensor(DType::f32, x->value.shape()), {x.get()});
  backend.kernels().dropout(backend.context_for(count),
                            {x->value.as<float>(), count, p, seed, 0, y->value.as<float>()});
  if (y->requires_grad)
    tape.record([&backend, x, y, p, seed, count] {
      auto* dy = y->grad.as<float>();
      backend.kernels().dropout(backend.context_for(count), {dy, count, p, seed, 0, dy});
      flow(backend, y, x);
      y->grad = {};
    });
  return y;
}

}  // namespace nibble::ops
