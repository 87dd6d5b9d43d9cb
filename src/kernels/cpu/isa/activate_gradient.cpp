// activate_gradient: value and slope of each activation in one step.
#include "kernels/cpu/isa/math.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

struct Value {
  F32 y, slope;
};

NIBBLE_SIMD Value sigmoid_times(F32 x, F32 factor) {
  const F32 s = sigmoid(factor * x);
  return {x * s, fma(factor * x * s, set1(1) - s, s)};
}

NIBBLE_SIMD Value gelu(F32 x) {
  const F32 z = abs(x) * set1(0.70710678f);
  const F32 density = exp(set1(0) - z * z);
  const F32 tail = set1(0.5f) * scaled_erfc(z) * density;
  const F32 share = select(greater(x, set1(0)), set1(1) - tail, tail);
  return {x * share, fma(x * density, set1(0.39894228f), share)};
}

/// 0.5 (1 + tanh(u)) is s = sigmoid(2 u), and 0.5 (1 - tanh(u)^2) is 2 s (1 - s).
NIBBLE_SIMD Value gelu_tanh(F32 x) {
  const F32 u = fma(x * x * x, set1(0.044715f), x) * set1(0.79788456f);
  const F32 s = sigmoid(u + u);
  const F32 du = fma(x * x, set1(3 * 0.044715f * 0.79788456f), set1(0.79788456f));
  return {x * s, fma(x * (s + s) * (set1(1) - s), du, s)};
}

NIBBLE_SIMD Value relu(F32 x) {
  const Mask positive = greater(x, set1(0));
  return {select(positive, x, set1(0)), select(positive, set1(1), set1(0))};
}

NIBBLE_SIMD Value tanh_of(F32 x) {
  const F32 t = tanh(x);
  return {t, set1(1) - t * t};
}

template <typename Body>
NIBBLE_SIMD void gradient_row(const ActivateGradientArgs& args, int64_t r, Body&& body) {
  const float *gate = args.gate + r * args.stride, *dout = args.dout + r * args.cols;
  const float* up = args.up ? args.up + r * args.stride : nullptr;
  float* dgate = args.dgate + r * args.stride;
  for (int64_t c = 0; c < args.cols; c += kLanes) {
    const int64_t n = min_of(kLanes, args.cols - c);
    const Value value = body(load_first(gate + c, n));
    const F32 d = load_first(dout + c, n);
    const F32 slope = up ? value.slope * load_first(up + c, n) : value.slope;
    if (up) store_first(args.dup + r * args.stride + c, d * value.y, n);
    store_first(dgate + c, d * slope, n);
  }
}

template <typename Body>
NIBBLE_SIMD void gradient_rows(const Context& context, const ActivateGradientArgs& args, Body&& body) {
  for_ranges(context, args.rows, max_of(1, 8192 / max_of(1, args.cols)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) gradient_row(args, r, body);
  });
}

}  // namespace

void activate_gradient(const Context& context, const ActivateGradientArgs& args) {
  switch (args.activation) {
    case Activation::silu:
      return gradient_rows(context, args, [](F32 x) { return sigmoid_times(x, set1(1)); });
    case Activation::quick_gelu:
      return gradient_rows(context, args, [](F32 x) { return sigmoid_times(x, set1(1.702f)); });
    case Activation::gelu:
      return gradient_rows(context, args, [](F32 x) { return gelu(x); });
    case Activation::gelu_tanh:
      return gradient_rows(context, args, [](F32 x) { return gelu_tanh(x); });
    case Activation::relu:
      return gradient_rows(context, args, [](F32 x) { return relu(x); });
    case Activation::tanh_:
      return gradient_rows(context, args, [](F32 x) { return tanh_of(x); });
  }
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
