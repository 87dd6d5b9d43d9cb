// The gradients of a frozen linear layer and its low-rank update are slopes, over each kind of weight.
#include "nn/lora.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"

namespace nibble::nn {
namespace {

using autograd::Tape;
using autograd::Var;

Tensor random_tensor(Random& random, Shape shape, float scale = 1) {
  Tensor tensor(DType::f32, std::move(shape));
  for (int64_t i = 0; i < tensor.count(); ++i) tensor.as<float>()[i] = scale * static_cast<float>(random.normal());
  return tensor;
}

double dot(const Tensor& a, const Tensor& b) {
  double sum = 0;
  for (int64_t i = 0; i < a.count(); ++i)
    sum += static_cast<double>(a.as<float>()[i]) * static_cast<double>(b.as<float>()[i]);
  return sum;
}

Tensor moved(const Tensor& x, const Tensor& direction, float step) {
  Tensor result(DType::f32, x.shape());
  for (int64_t i = 0; i < x.count(); ++i) result.as<float>()[i] = x.as<float>()[i] + step * direction.as<float>()[i];
  return result;
}

/// Which weight the frozen layer has.
Linear make_layer(const ops::Backend& backend, const Tensor& w, int kind) {
  Linear layer;
  layer.rows = w.dim(0);
  layer.cols = w.dim(1);
  if (kind == 0) layer.weight = DenseWeight{w};
  if (kind == 1) layer.weight = Weight4Bit{ops::quantize_4bit(backend, w, ops::format_4bit("nf4"), 64, true)};
  if (kind == 2) layer.weight = Weight4Bit{ops::quantize_4bit(backend, w, ops::format_4bit("fp4"), 64, false)};
  return layer;
}

TEST(Lora, GradientsAreSlopes) {
  const ops::Backend backend(2);
  constexpr int64_t kRows = 40, kCols = 50, kRank = 4, kTokens = 9;
  for (const int kind : {0, 1, 2})
    for (const float p : {0.0f, 0.25f}) {
      SCOPED_TRACE(std::to_string(kind) + " dropout " + std::to_string(p));
      Random random(3);
      const Linear layer = make_layer(backend, random_tensor(random, {kRows, kCols}), kind);
      const Tensor x = random_tensor(random, {kTokens, kCols}), a = random_tensor(random, {kRank, kCols}),
                   b = random_tensor(random, {kRows, kRank}), dy = random_tensor(random, {kTokens, kRows});
      const auto f = [&](const Tensor& x_, const Tensor& a_, const Tensor& b_) {
        Tape silent(false);
        const Lora lora{autograd::parameter(a_), autograd::parameter(b_), 0.5f, p};
        return dot(linear(silent, backend, autograd::constant(x_), layer, &lora, 77)->value, dy);
      };
      Tape tape;
      const Lora lora{autograd::parameter(a), autograd::parameter(b), 0.5f, p};
      const Var input = autograd::parameter(x);
      const Var y = linear(tape, backend, input, layer, &lora, 77);
      y->grad = dy;
      tape.backward();
      const auto check = [&](const char* what, const Tensor& gradient, const Tensor& direction, double ahead,
                             double behind) {
        const double slope = (ahead - behind) / 0.02, expected = dot(gradient, direction);
        EXPECT_NEAR(slope, expected, 1e-3 * std::sqrt(dot(gradient, gradient)) + 1e-3) << what;
      };
      const Tensor dx = random_tensor(random, x.shape()), da = random_tensor(random, a.shape()),
                   db = random_tensor(random, b.shape());
      check("x", input->grad, dx, f(moved(x, dx, 0.01f), a, b), f(moved(x, dx, -0.01f), a, b));
      check("a", lora.a->grad, da, f(x, moved(a, da, 0.01f), b), f(x, moved(a, da, -0.01f), b));
      check("b", lora.b->grad, db, f(x, a, moved(b, db, 0.01f)), f(x, a, moved(b, db, -0.01f)));
    }
}

TEST(Lora, GradientsAddToWhatIsThere) {
  const ops::Backend backend(1);
  Random random(4);
  const Linear layer = make_layer(backend, random_tensor(random, {8, 64}), 1);
  const Lora lora{autograd::parameter(random_tensor(random, {2, 64})),
                  autograd::parameter(random_tensor(random, {8, 2})), 2, 0};
  const Tensor x = random_tensor(random, {3, 64}), dy = random_tensor(random, {3, 8});
  std::vector<float> once;
  for (int pass = 0; pass < 2; ++pass) {
    Tape tape;
    const Var y = linear(tape, backend, autograd::constant(x), layer, &lora);
    y->grad = dy;
    tape.backward();
    if (pass == 0) once.assign(lora.a->grad.as<float>(), lora.a->grad.as<float>() + 128);
  }
  for (size_t i = 0; i < once.size(); ++i) EXPECT_NEAR(lora.a->grad.as<float>()[i], 2 * once[i], 1e-4f);
}

}  // namespace
}  // namespace nibble::nn
