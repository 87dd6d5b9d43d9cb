// penalize and top_candidates: what stands between logits and the choice of a token.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {

void penalize(const Context& context, const PenalizeArgs& args) {
  for_each(context, args.rows, 1, [&](int64_t r) {
    for (int32_t i = args.offsets[r]; i < args.offsets[r + 1]; ++i) {
      float& x = args.x[r * args.cols + args.tokens[i]];
      x = x < 0 ? x * args.penalty : x / args.penalty;
    }
  });
}

void top_candidates(const Context& context, const TopCandidatesArgs& args) {
  for_each(context, args.rows, 1, [&](int64_t r) {
    const float* x = args.x + r * args.cols;
    std::vector<int32_t> order;
    for (int64_t c = 0; c < args.cols; ++c)
      if (x[c] > -INFINITY) order.push_back(static_cast<int32_t>(c));
    const auto kept = std::min(static_cast<int64_t>(order.size()), args.count);
    std::partial_sort(order.begin(), order.begin() + kept, order.end(),
                      [&](int32_t a, int32_t b) { return x[a] != x[b] ? x[a] > x[b] : a < b; });
    double mass = 0;
    for (const int32_t c : order)
      mass += std::exp(double{x[c] / args.temperature} - double{x[order[0]] / args.temperature});
    args.masses[r] = static_cast<float>(mass);
    for (int64_t i = 0; i < args.count; ++i) {
      args.columns[r * args.count + i] = i < kept ? order[static_cast<size_t>(i)] : -1;
      args.values[r * args.count + i] = i < kept ? x[order[static_cast<size_t>(i)]] : -INFINITY;
    }
  });
}

}  // namespace nibble::kernels::reference
