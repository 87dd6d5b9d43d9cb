// Chunks are views of the whole tensors: values are copied once, gradients are added to where they belong.
#include "ops/rows.h"

#include <algorithm>
#include <utility>

#include "ops/gradient.h"

namespace nibble::ops {

using autograd::Tape;
using autograd::Var;

Var checkpoint_rows(Tape& tape, const Backend& backend, const Var& x, int64_t chunk, int64_t cols, bool needs_value,
                    RowsFunction f) {
  const int64_t rows = x->value.dim(0);
  Tensor value;
  if (needs_value) value = backend.empty(x->value.dtype(), {rows, cols});
  for (int64_t first = 0; needs_value && first < rows; first += chunk) {
    Tape silent(false);
    const int64_t count = std::min(chunk, rows - first);
    const Var part = f(silent, autograd::constant(x->value.rows(first, count)), first);
    backend.copy(value.rows(first, count).data(), part->value.data(), part->value.size_bytes());
  }
  Var y = autograd::constant(std::move(value));
  y->requires_grad = tape.is_recording();
  tape.record([&backend, x, y, rows, chunk, f = std::move(f)] {
    if (!y->grad) return;
    gradient_sum_of(backend, x);
    for (int64_t first = 0; first < rows; first += chunk) {
      const int64_t count = std::min(chunk, rows - first);
      Tape again;
      const Var input = autograd::constant(x->value.rows(first, count));
      input->requires_grad = x->requires_grad;
      if (x->grad) input->grad = x->grad.rows(first, count);
      const Var output = f(again, input, first);
      output->grad = y->grad.rows(first, count);
      again.backward();
    }
    y->grad = {};
  });
  return y;
}

}  // namespace nibble::ops
