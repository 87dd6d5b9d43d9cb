// route_experts: the experts of each token.
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

}  // namespace nibble::kernels::reference
