// rms_norm_gradient and layer_norm_gradient, in double.
#include <cmath>
#include <vector>

#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {
// y = x s w with s = (mean(x^2) + eps)^-1/2: dx = s (w dy - x s^2 mean(x w dy)).
void rms_norm_gradient(const Context&, const RmsNormGradientArgs& args) {
  const auto cols = static_cast<double>(args.cols);
  for (int64_t r = 0; r < args.rows; ++r) {
    const float *x = args.x + r * args.cols, *dy = args.dy + r * args.cols;
    double squares = 0, product = 0;
    for (int64_t c = 0; c < args.cols; ++c) {
      const double weight = static_cast<double>(args.weight[c]) + static_cast<double>(args.weight_offset);
      squares += static_cast<double>(x[c]) * static_cast<double>(x[c]);
      product += static_cast<double>(x[c]) * weight * static_cast<double>(dy[c]);
    }
    const double scale = 1 / std::sqrt(squares / cols + static_cast<double>(args.eps));
    const double shrink = scale * scale * product / cols;
    for (int64_t c = 0; c < args.cols; ++c) {
      const double weight = static_cast<double>(args.weight[c]) + static_cast<double>(args.weight_offset);
      const double value = scale * (weight * static_cast<double>(dy[c]) - static_cast<double>(x[c]) * shrink);
      put(args.dx[r * args.cols + c], value, args.accumulate);
      if (args.dweight)
        args.dweight[c] += static_cast<float>(static_cast<double>(x[c]) * scale * static_cast<double>(dy[c]));
    }
  }
}

// y = n w + b with n = (x - mean) s: dx = s (w dy - mean(w dy) - n mean(n w dy)).
void layer_norm_gradient(const Context&, const LayerNormGradientArgs& args) {
  const auto cols = static_cast<double>(args.cols);
  for (int64_t r = 0; r < args.rows; ++r) {
    const float *x = args.x + r * args.cols, *dy = args.dy + r * args.cols;
    const int64_t set = r % args.sets * args.cols;
    const float* weight = args.weight + set;
    double sum = 0, squares = 0, total = 0, product = 0;
    for (int64_t c = 0; c < args.cols; ++c) sum += static_cast<double>(x[c]);
    const double mean = sum / cols;
    for (int64_t c = 0; c < args.cols; ++c)
      squares += (static_cast<double>(x[c]) - mean) * (static_cast<double>(x[c]) - mean);
    const double scale = 1 / std::sqrt(squares / cols + static_cast<double>(args.eps));
    for (int64_t c = 0; c < args.cols; ++c) {
      const double g = static_cast<double>(weight[c]) * static_cast<double>(dy[c]);
      total += g;
      product += g * (static_cast<double>(x[c]) - mean) * scale;
    }
    for (int64_t c = 0; c < args.cols; ++c) {
      const double normed = (static_cast<double>(x[c]) - mean) * scale;
      const double g = static_cast<double>(weight[c]) * static_cast<double>(dy[c]);
      put(args.dx[r * args.cols + c], scale * (g - total / cols - normed * product / cols), args.accumulate);
      if (args.dweight) args.dweight[set + c] += static_cast<float>(normed * static_cast<double>(dy[c]));
      if (args.dbias) args.dbias[set + c] += dy[c];
    }
  }
}

}  // namespace nibble::kernels::reference
