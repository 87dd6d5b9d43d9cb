// Order, accumulation and recomputation, with a toy op.
#include "autograd/tape.h"

#include <gtest/gtest.h>

namespace nibble::autograd {
namespace {

Tensor scalar(float value) {
  Tensor tensor(DType::f32, {1});
  tensor.as<float>()[0] = value;
  return tensor;
}

/// a * b, counting how often it ran.
Var multiply(Tape& tape, const Var& a, const Var& b, int& runs) {
  ++runs;
  Var y = result_of(tape, scalar(a->value.as<float>()[0] * b->value.as<float>()[0]), {a.get(), b.get()});
  if (y->requires_grad)
    tape.record([a, b, y] {
      const auto flow = [&](const Var& to, const Var& other) {
        if (!to->requires_grad) return;
        const float part = y->grad.as<float>()[0] * other->value.as<float>()[0];
        to->grad = scalar(to->grad ? to->grad.as<float>()[0] + part : part);
      };
      flow(a, b);
      flow(b, a);
    });
  return y;
}

void seed(const Var& y) { y->grad = scalar(1); }

TEST(Tape, GradientsAddUp) {
  Tape tape;
  int runs = 0;
  const Var x = parameter(scalar(3)), k = constant(scalar(5));
  const Var y = multiply(tape, multiply(tape, x, x, runs), k, runs);  // 5 x^2
  seed(y);
  tape.backward();
  EXPECT_EQ(x->grad.as<float>()[0], 30);
  EXPECT_FALSE(static_cast<bool>(k->grad));
}

TEST(Tape, SilentTapeRecordsNothing) {
  Tape tape(false);
  int runs = 0;
  const Var x = parameter(scalar(3));
  EXPECT_FALSE(multiply(tape, x, x, runs)->requires_grad);
}

TEST(Tape, CheckpointRunsAgainAndGivesTheSameGradients) {
  const auto cube = [](Tape& tape, const Var& x, const Var& w, int& runs) {
    return multiply(tape, multiply(tape, x, x, runs), w, runs);
  };
  float x_grad[2], w_grad[2];
  for (const bool is_checkpointed : {false, true}) {
    Tape tape;
    int runs = 0;
    const Var x = parameter(scalar(3)), w = parameter(scalar(2));
    const auto f = [&](Tape& t, const Var& v) { return cube(t, v, w, runs); };
    const Var y = is_checkpointed ? checkpoint(tape, x, f) : f(tape, x);
    const Var z = multiply(tape, y, x, runs);  // 2 x^3
    seed(z);
    tape.backward();
    EXPECT_EQ(runs, is_checkpointed ? 5 : 3);
    x_grad[is_checkpointed] = x->grad.as<float>()[0];
    w_grad[is_checkpointed] = w->grad.as<float>()[0];
  }
  EXPECT_EQ(x_grad[0], 54);
  EXPECT_EQ(x_grad[1], 54);
  EXPECT_EQ(w_grad[0], 27);
  EXPECT_EQ(w_grad[1], 27);
}

}  // namespace
}  // namespace nibble::autograd
