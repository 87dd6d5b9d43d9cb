// activate: the activation functions, in double, times the other branch of a gated MLP.
#include <cmath>
#include <numbers>

#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {
namespace {

double apply(Activation activation, double x) {
  switch (activation) {
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu:
      return 0.5 * x * (1 + std::erf(x / std::numbers::sqrt2));
    case Activation::gelu_tanh: {
      const double inner = std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x);
      return 0.5 * x * (1 + std::tanh(inner));
    }
    case Activation::relu:
      return x > 0 || std::isnan(x) ? x : 0;
    case Activation::quick_gelu:
      return x / (1 + std::exp(-1.702 * x));
    case Activation::tanh_:
      return std::tanh(x);
  }
  return x;
}

}  // namespace

// One thread: out may be gate with a wider stride, and then a row lands on rows that were read before it.
void activate(const Context&, const ActivateArgs& args) {
  for (int64_t r = 0; r < args.rows; ++r) {
    for (int64_t c = 0; c < args.cols; ++c) {
      const double value =
          apply(args.activation, static_cast<double>(load(args.gate, args.x_dtype, r * args.stride + c)));
      const double up = args.up ? static_cast<double>(load(args.up, args.x_dtype, r * args.stride + c)) : 1;
      store(args.out, args.out_dtype, r * args.cols + c, static_cast<float>(value * up));
    }
  }
}

}  // namespace nibble::kernels::reference
