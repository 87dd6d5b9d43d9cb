// The tape, and recomputation on a tape of its own.
#include "autograd/tape.h"

#include <utility>

namespace nibble::autograd {

Var constant(Tensor value) {
  auto variable = std::make_shared<Variable>();
  variable->value = std::move(value);
  return variable;
}

Var parameter(Tensor value) {
  Var variable = constant(std::move(value));
  variable->requires_grad = true;
  return variable;
}

void Tape::record(std::function<void()> backward) {
  if (is_recording_) steps_.push_back(std::move(backward));
}

void Tape::backward() {
  while (!steps_.empty()) {
    const std::function<void()> step = std::move(steps_.back());
    steps_.pop_back();
    step();
  }
}

Var result_of(const Tape& tape, Tensor value, std::initializer_list<const Variable*> inputs) {
  Var result = constant(std::move(value));
  for (const Variable* input : inputs)
    if (input && input->requires_grad) result->requires_grad = tape.is_recording();
  return result;
}

Var checkpoint(Tape& tape, const Var& x, std::function<Var(Tape&, const Var&)> f, Store* store) {
  Tape silent(false);
  Var y = constant(f(silent, x)->value);
  y->requires_grad = tape.is_recording();
  if (store && tape.is_recording()) store->put(std::exchange(x->value, {}));
  tape.record([x, y, store, f = std::move(f)] {
    Var input = constant(store ? store->take() : x->value);
    if (!y->grad) return;
    Tape again;
    input->requires_grad = x->requires_grad;
    input->grad = std::move(x->grad);  // what flows in is added to it
    Var output = f(again, input);
    output->grad = std::move(y->grad);
    again.backward();
    x->grad = std::move(input->grad);
  });
  return y;
}

}  // namespace nibble::autograd
