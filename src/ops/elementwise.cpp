// Forward, then the step that goes back.
#include "ops/elementwise.h"

#include "base/error.h"
#include "ops/gradient.h"

namespace nibble::ops {
namespace {

using autograd::Tape;
using autograd::Var;

Var activate_rows(Tape& tape, const Backend& backend, const Var& x, kernels::Activation activation, bool is_gated) {
  const int64_t rows = x->value.dim(0), stride = x->value.dim(1), cols = is_gated ? stride / 2 : stride;
  Var y = result_of(tape, backend.empty(x->value.dtype(), {rows, cols}), {x.get()});
  const DType dtype = x->value.dtype();
  const auto up_of = [=](void* gate) {
    return is_gated ? static_cast<std::byte*>(gate) + cols * size_of(dtype) : nullptr;
  };
  backend.kernels().activate(backend.context_for(rows * cols), {x->value.data(), up_of(x->value.data()), stride, rows,
                                                                cols, activation, y->value.data(), dtype, dtype});
  if (y->requires_grad)
    tape.record([&backend, x, y, activation, rows, cols, stride, up_of] {
      // The kernel writes; what flowed in before is added after.
      Tensor before = std::move(x->grad);
      x->grad = empty_like(backend, x->value);
      const auto up = [&](Tensor& tensor) { return reinterpret_cast<float*>(up_of(tensor.data())); };
      auto* dgate = x->grad.as<float>();
      backend.kernels().activate_gradient(backend.context_for(rows * cols),
                                          {x->value.as<float>(), up(x->value), stride, y->grad.as<float>(), rows, cols,
                                           activation, dgate, up(x->grad), x->value.dtype()});
      if (before)
        backend.kernels().add_scaled(backend.context_for(before.count()),
                                     {before.as<float>(), before.count(), 1, dgate, before.dtype()});
      y->grad = {};
    });
  return y;
}

}  // namespace

Var activate_times(Tape& tape, const Backend& backend, const Var& gate, const Var& up, kernels::Activation activation) {
  require(gate->value.shape() == up->value.shape(), "activate_times: found shapes {} and {}, expected the same",
          to_string(gate->value.shape()), to_string(up->value.shape()));
  const int64_t rows = gate->value.dim(0), cols = gate->value.dim(1), count = rows * cols;
  Var y = result_of(tape, backend.empty(gate->value.dtype(), {rows, cols}), {gate.get(), up.get()});
  backend.kernels().activate(backend.context_for(count),
                             {gate->value.as<float>(), up->value.as<float>(), cols, rows, cols, activation,
                              y->value.data(), y->value.dtype(), y->value.dtype()});
  if (y->requires_grad)
    tape.record([&backend, gate, up, y, activation, rows, cols, count] {
      Tensor dgate = empty_like(backend, gate->value), dup = empty_like(backend, up->value);
      backend.kernels().activate_gradient(
          backend.context_for(count), {gate->value.as<float>(), up->value.as<float>(), cols, y->grad.as<float>(), rows,
                                       cols, activation, dgate.as<float>(), dup.as<float>(), y->value.dtype()});
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

Var add(Tape& tape, const Backend& backend, const Var& a, const Var& b, bool needs_value) {
  Var y = result_of(tape, std::move(b->value), {a.get(), b.get()});
  if (needs_value) {
    require(a->value.shape() == y->value.shape(), "add: found shapes {} and {}, expected the same",
            to_string(a->value.shape()), to_string(y->value.shape()));
    const int64_t count = a->value.count();
    backend.kernels().add_scaled(backend.context_for(count),
                                 {a->value.as<float>(), count, 1, y->value.as<float>(), y->value.dtype()});
  }
  if (y->requires_grad)
    tape.record([&backend, a, b, y] {
      add_gradient(backend, a, y->grad);  // both may hold it: b's is read before a's is added to
      add_gradient(backend, b, std::move(y->grad));
      y->grad = {};
    });
  return y;
}

Var dropout(Tape& tape, const Backend& backend, const Var& x, float p, uint64_t seed) {
  if (p == 0) return x;
  const int64_t count = x->value.count();
  Var y = result_of(tape, empty_like(backend, x->value), {x.get()});
  backend.kernels().dropout(backend.context_for(count),
                            {x->value.as<float>(), count, p, seed, 0, y->value.as<float>(), x->value.dtype()});
  if (y->requires_grad)
    tape.record([&backend, x, y, p, seed, count] {
      auto* dy = y->grad.as<float>();
      backend.kernels().dropout(backend.context_for(count), {dy, count, p, seed, 0, dy, x->value.dtype()});
      add_gradient(backend, x, std::move(y->grad));
      y->grad = {};
    });
  return y;
}

}  // namespace nibble::ops
