// Reverse-mode differentiation: a tape of steps that are run backwards. It knows no op; ops record their gradients.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "tensor/tensor.h"

namespace nibble::autograd {

/// A value of a computation, and its gradient once something has flowed back into it.
struct Variable {
  Tensor value;  // f32; activations on a GPU may be bf16
  Tensor grad;   // of the same type and shape, or empty
  bool requires_grad = false;
};
using Var = std::shared_ptr<Variable>;

/// A value that no gradient flows into.
Var constant(Tensor value);
/// A value that collects a gradient.
Var parameter(Tensor value);

/// What a pass did, to be run backwards. One thread at a time.
class Tape {
 public:
  /// A tape that is not recording drops every step: for evaluation, and for what will be computed anew.
  explicit Tape(bool is_recording = true) : is_recording_(is_recording) {}
  bool is_recording() const { return is_recording_; }
  /// `backward` reads the gradient of its op's result and adds to those of its inputs.
  void record(std::function<void()> backward);
  /// Runs the steps, the last first; each is freed, with what it kept, as soon as it has run.
  void backward();

 private:
  bool is_recording_;
  std::vector<std::function<void()>> steps_;
};

/// A new variable for an op's result: it requires a gradient if the tape records and any input does.
Var result_of(const Tape& tape, Tensor value, std::initializer_list<const Variable*> inputs);

/// Keeps values between the way there and the way back, which takes them in reverse order, each once.
class Store {
 public:
  virtual ~Store() = default;
  virtual void put(Tensor value) = 0;
  virtual Tensor take() = 0;
};

/// y = f(tape, x), keeping x alone: backward runs f again. f must give the same result each time; `parameters` of it
/// may collect gradients. (Chen et al., 2016, https://arxiv.org/abs/1604.06174) `store`: x's value goes there if it is
/// not null; then no step before may need it on the way back.
Var checkpoint(Tape& tape, const Var& x, std::function<Var(Tape&, const Var&)> f, Store* store = nullptr);

}  // namespace nibble::autograd
