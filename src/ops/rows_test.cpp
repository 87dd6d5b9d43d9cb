// A function of rows in chunks gives the values and gradients of the whole.
#include "ops/rows.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/random.h"
#include "ops/elementwise.h"
#include "ops/norm.h"

namespace nibble::ops {
namespace {

using autograd::Tape;
using autograd::Var;

constexpr int64_t kRows = 11, kCols = 16;

Tensor random_rows(uint64_t seed) {
  Random random(seed);
  Tensor tensor(DType::f32, {kRows, kCols});
  for (int64_t i = 0; i < tensor.count(); ++i) tensor.as<float>()[i] = static_cast<float>(random.normal());
  return tensor;
}

struct Result {
  Tensor value, grad;
  int64_t most_rows = 0;  // that the function saw at once
};

/// silu of the normed rows, all at once (chunk 0) or in chunks; the gradient is added to one that is there.
Result run(const Backend& backend, int64_t chunk, bool needs_value) {
  Result result;
  const Var x = autograd::parameter(random_rows(1));
  Tensor ones(DType::f32, {kCols});
  std::fill_n(ones.as<float>(), kCols, 1.0f);
  const Var weight = autograd::constant(ones);
  const auto f = [&](Tape& tape, const Var& rows, int64_t) {
    result.most_rows = std::max(result.most_rows, rows->value.dim(0));
    return activate(tape, backend, rms_norm(tape, backend, rows, weight, 1e-5f, 0), kernels::Activation::silu);
  };
  Tape tape;
  const Var y = chunk == 0 ? f(tape, x, 0) : checkpoint_rows(tape, backend, x, chunk, kCols, needs_value, f);
  if (needs_value) result.value = y->value;
  y->grad = random_rows(2);
  x->grad = random_rows(3);
  tape.backward();
  result.grad = x->grad;
  return result;
}

void expect_same(const Tensor& a, const Tensor& b) {
  for (int64_t i = 0; i < a.count(); ++i) ASSERT_EQ(a.as<float>()[i], b.as<float>()[i]) << i;
}

TEST(CheckpointRows, AsTheWhole) {
  const Backend backend(1);
  const Result whole = run(backend, 0, true);
  for (const int64_t chunk : {1, 4, 11, 20}) {
    const Result found = run(backend, chunk, true);
    expect_same(whole.value, found.value);
    expect_same(whole.grad, found.grad);
    EXPECT_EQ(found.most_rows, std::min(chunk, kRows));
  }
  expect_same(whole.grad, run(backend, 4, false).grad);
}

}  // namespace
}  // namespace nibble::ops
