// activate_gradient: derivatives of the activation functions, in double.
#include <cmath>
#include <numbers>

#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {
namespace {

struct Value {
  double y, slope;
};

Value sigmoid_times(double x, double factor) {
  const double s = 1 / (1 + std::exp(-factor * x));
  return {x * s, s + factor * x * s * (1 - s)};
}

Value apply(Activation activation, double x) {
  switch (activation) {
    case Activation::silu:
      return sigmoid_times(x, 1);
    case Activation::quick_gelu:
      return sigmoid_times(x, 1.702);
    case Activation::gelu: {
      const double share = 0.5 * (1 + std::erf(x / std::numbers::sqrt2));
      return {x * share, share + x * std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi)};
    }
    case Activation::gelu_tanh: {
      const double k = std::sqrt(2 / std::numbers::pi);
      const double t = std::tanh(k * (x + 0.044715 * x * x * x));
      return {0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * k * (1 + 3 * 0.044715 * x * x)};
    }
    case Activation::relu:
      return {x > 0 ? x : 0, x > 0 ? 1.0 : 0.0};
    case Activation::tanh_: {
      const double t = std::tanh(x);
      return {t, 1 - t * t};
    }
  }
  return {x, 1};
}

}  // namespace

void activate_gradient(const Context& context, const ActivateGradientArgs& args) {
  for_each(context, args.rows, 16, [&](int64_t r) {
    for (int64_t c = 0; c < args.cols; ++c) {
      const int64_t i = r * args.stride + c;
      const Value value = apply(args.activation, static_cast<double>(args.gate[i]));
      const double dout = static_cast<double>(args.dout[r * args.cols + c]);
      const double up = args.up ? static_cast<double>(args.up[i]) : 1;
      args.dgate[i] = static_cast<float>(dout * up * value.slope);
      if (args.up) args.dup[i] = static_cast<float>(dout * value.y);
    }
  });
}

}  // namespace nibble::kernels::reference
