// rms_norm and layer_norm, in double with one rounding at the end.
#include <cmath>

#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {

void rms_norm(const Context& context, const RmsNormArgs& args) {
  for_each(context, args.rows, 1, [&](int64_t r) {
    const float* x = args.x + r * args.cols;
    float* out = args.out + r * args.cols;
    double sum = 0;
    for (int64_t c = 0; c < args.cols; ++c) sum += static_cast<double>(x[c]) * static_cast<double>(x[c]);
    const double scale = 1 / std::sqrt(sum / static_cast<double>(args.cols) + static_cast<double>(args.eps));
    for (int64_t c = 0; c < args.cols; ++c) {
      const double weight = static_cast<double>(args.weight[c]) + static_cast<double>(args.weight_offset);
      const auto value = static_cast<float>(static_cast<double>(x[c]) * scale * weight);
      out[c] = args.accumulate ? out[c] + value : value;
    }
  });
}

void layer_norm(const Context& context, const LayerNormArgs& args) {
  for_each(context, args.rows, 1, [&](int64_t r) {
    const float* x = args.x + r * args.cols;
    float* out = args.out + r * args.cols;
    const float* weight = args.weight + r % args.sets * args.cols;
    const float* all_bias = args.bias ? args.bias + r % args.sets * args.cols : nullptr;
    const auto cols = static_cast<double>(args.cols);
    double sum = 0;
    for (int64_t c = 0; c < args.cols; ++c) sum += static_cast<double>(x[c]);
    const double mean = sum / cols;
    double squares = 0;
    for (int64_t c = 0; c < args.cols; ++c)
      squares += (static_cast<double>(x[c]) - mean) * (static_cast<double>(x[c]) - mean);
    const double scale = 1 / std::sqrt(squares / cols + static_cast<double>(args.eps));
    for (int64_t c = 0; c < args.cols; ++c) {
      const double bias = all_bias ? static_cast<double>(all_bias[c]) : 0;
      out[c] = static_cast<float>((static_cast<double>(x[c]) - mean) * scale * static_cast<double>(weight[c]) + bias);
    }
  });
}

}  // namespace nibble::kernels::reference
