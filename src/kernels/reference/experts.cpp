// route_experts and route_experts_gradient: the experts of each token; dot_rows: what a row brings its weight.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {

void route_experts(const Context& context, const RouteExpertsArgs& args) {
  for_each(context, args.tokens, 16, [&](int64_t token) {
    const float* logits = args.logits + token * args.experts;
    std::vector<int32_t> order(static_cast<size_t>(args.experts));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    const auto exponential = [&](int32_t e) {
      return std::exp(static_cast<double>(logits[e]) - static_cast<double>(logits[order[0]]));
    };
    double total = 0;
    for (int64_t i = 0; i < (args.normalize ? args.top_k : args.experts); ++i)
      total += exponential(order[static_cast<size_t>(i)]);
    for (int64_t i = 0; i < args.top_k; ++i) {
      const int32_t expert = order[static_cast<size_t>(i)];
      args.ids[token * args.top_k + i] = expert;
      args.weights[token * args.top_k + i] = static_cast<float>(exponential(expert) / total);
    }
  });
}

void route_experts_gradient(const Context& context, const RouteExpertsGradientArgs& args) {
  for_each(context, args.tokens, 16, [&](int64_t token) {
    const float* logits = args.logits + token * args.experts;
    const int32_t* chosen = args.ids + token * args.top_k;
    const float* dweights = args.dweights + token * args.top_k;
    float* dlogits = args.dlogits + token * args.experts;
    // Shares of all that the weights are shares of: of the chosen experts, or of every one.
    std::vector<double> shares(static_cast<size_t>(args.experts));
    double total = 0;
    const auto add = [&](int64_t e) {
      total += shares[static_cast<size_t>(e)] =
          std::exp(static_cast<double>(logits[e]) - static_cast<double>(logits[chosen[0]]));
    };
    if (args.normalize)
      for (int64_t i = 0; i < args.top_k; ++i) add(chosen[i]);
    else
      for (int64_t e = 0; e < args.experts; ++e) add(e);
    double mean = 0;
    for (int64_t i = 0; i < args.top_k; ++i)
      mean += static_cast<double>(dweights[i]) * shares[static_cast<size_t>(chosen[i])] / total;
    std::vector<double> slopes(static_cast<size_t>(args.experts));
    for (int64_t i = 0; i < args.top_k; ++i) slopes[static_cast<size_t>(chosen[i])] = static_cast<double>(dweights[i]);
    for (size_t e = 0; e < shares.size(); ++e) dlogits[e] = static_cast<float>(shares[e] / total * (slopes[e] - mean));
  });
}

void dot_rows(const Context& context, const DotRowsArgs& args) {
  for_each(context, args.count, 16, [&](int64_t i) {
    const float *x = args.x + i * args.cols, *y = args.y + args.rows[i] * args.cols;
    double sum = 0;
    for (int64_t c = 0; c < args.cols; ++c) sum += static_cast<double>(x[c]) * static_cast<double>(y[c]);
    args.dots[i] = static_cast<float>(sum);
  });
}

}  // namespace nibble::kernels::reference
