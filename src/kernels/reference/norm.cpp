// rms_norm and layer_norm, in double with one rounding at the end.
#include <cmath>

#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {

void rms_norm(const Context& context, const RmsNormArgs& args) {
  for_each(context, args.rows, 1, [&](int64_t r) {
    const auto x = [&](int64_t c) { return static_cast<double>(load(args.x, args.x_dtype, r * args.cols + c)); };
    double sum = 0;
    for (int64_t c = 0; c < args.cols; ++c) sum += x(c) * x(c);
    const double scale = 1 / std::sqrt(sum / static_cast<double>(args.cols) + static_cast<double>(args.eps));
    for (int64_t c = 0; c < args.cols; ++c) {
      const double weight = static_cast<double>(args.weight[c]) + static_cast<double>(args.weight_offset);
      const auto value = static_cast<float>(x(c) * scale * weight);
      const int64_t at = r * args.cols + c;
      store(args.out, args.out_dtype, at, args.accumulate ? load(args.out, args.out_dtype, at) + value : value);
    }
  });
}

void layer_norm(const Context& context, const LayerNormArgs& args) {
  for_each(context, args.rows, 1, [&](int64_t r) {
    const auto x = [&](int64_t c) { return static_cast<double>(load(args.x, args.x_dtype, r * args.cols + c)); };
    const float* weight = args.weight + r % args.sets * args.cols;
    const float* all_bias = args.bias ? args.bias + r % args.sets * args.cols : nullptr;
    const auto cols = static_cast<double>(args.cols);
    double sum = 0;
    for (int64_t c = 0; c < args.cols; ++c) sum += x(c);
    const double mean = sum / cols;
    double squares = 0;
    for (int64_t c = 0; c < args.cols; ++c) squares += (x(c) - mean) * (x(c) - mean);
    const double scale = 1 / std::sqrt(squares / cols + static_cast<double>(args.eps));
    for (int64_t c = 0; c < args.cols; ++c) {
      const double bias = all_bias ? static_cast<double>(all_bias[c]) : 0;
      const double value = (x(c) - mean) * scale * static_cast<double>(weight[c]) + bias;
      store(args.out, args.out_dtype, r * args.cols + c, static_cast<float>(value));
    }
  });
}

}  // namespace nibble::kernels::reference
