// activate: the activation functions times the other branch of a gated MLP.
#include "kernels/cpu/isa/math.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

NIBBLE_SIMD F32 gelu(F32 x) {
  const F32 z = abs(x) * set1(0.70710678f);
  const F32 tail = set1(0.5f) * x * scaled_erfc(z) * exp(set1(0) - z * z);
  return select(greater(x, set1(0)), x - tail, tail);
}

/// 0.5 (1 + tanh(u)) is sigmoid(2 u).
NIBBLE_SIMD F32 gelu_tanh(F32 x) {
  const F32 u = fma(x * x * x, set1(0.044715f), x) * set1(0.79788456f);
  return x * sigmoid(u + u);
}

NIBBLE_SIMD F32 relu(F32 x) { return max(set1(0), x); }  // the second operand where either is NaN

template <typename Body>
NIBBLE_SIMD void activate_row(const float* gate, const float* up, int64_t cols, float* out, Body&& body) {
  int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) {
    const F32 value = body(load(gate + c));
    store(out + c, up ? value * load(up + c) : value);
  }
  if (c == cols) return;
  const F32 value = body(load_some(gate + c, cols - c));
  store_some(out + c, up ? value * load_some(up + c, cols - c) : value, cols - c);
}

template <typename Body>
NIBBLE_SIMD void activate_rows(const Context& context, const ActivateArgs& args, Body&& body) {
  // In place with a wider stride, a row lands on rows that must have been read before: one thread, in order.
  const bool is_in_place = args.out == args.gate || args.out == args.up;
  const bool is_ordered = is_in_place && args.stride != args.cols;
  const int64_t grain = is_ordered ? max_of(1, args.rows) : max_of(1, 8192 / max_of(1, args.cols));
  for_ranges(context, args.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      activate_row(args.gate_f32() + r * args.stride, args.up ? args.up_f32() + r * args.stride : nullptr, args.cols,
                   args.out_f32() + r * args.cols, body);
  });
}

}  // namespace

void activate(const Context& context, const ActivateArgs& args) {
  switch (args.activation) {
    case Activation::silu:
      return activate_rows(context, args, [](F32 x) { return x * sigmoid(x); });
    case Activation::gelu:
      return activate_rows(context, args, [](F32 x) { return gelu(x); });
    case Activation::gelu_tanh:
      return activate_rows(context, args, [](F32 x) { return gelu_tanh(x); });
    case Activation::relu:
      return activate_rows(context, args, [](F32 x) { return relu(x); });
    case Activation::quick_gelu:
      return activate_rows(context, args, [](F32 x) { return x * sigmoid(x * set1(1.702f)); });
    case Activation::tanh_:
      return activate_rows(context, args, [](F32 x) { return tanh(x); });
  }
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
