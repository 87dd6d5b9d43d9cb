// cross_entropy, dropout and add_scaled.
#include <algorithm>
#include <cmath>

#include "kernels/dropout_rule.h"
#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {

void cross_entropy(const Context& context, const CrossEntropyArgs& args) {
  for_each(context, args.rows, 1, [&](int64_t r) {
    float* logits = args.logits + r * args.vocab;
    const int32_t target = args.targets[r];
    args.loss[r] = 0;
    if (target < 0) {
      std::fill_n(logits, args.vocab, 0.0f);
      return;
    }
    const double largest = static_cast<double>(*std::max_element(logits, logits + args.vocab));
    double total = 0;
    for (int64_t c = 0; c < args.vocab; ++c) total += std::exp(static_cast<double>(logits[c]) - largest);
    args.loss[r] = static_cast<float>(std::log(total) + largest - static_cast<double>(logits[target]));
    for (int64_t c = 0; c < args.vocab; ++c) {
      const double p = std::exp(static_cast<double>(logits[c]) - largest) / total;
      logits[c] = static_cast<float>(static_cast<double>(args.scale) * (p - (c == target ? 1 : 0)));
    }
  });
}

void dropout(const Context& context, const DropoutArgs& args) {
  const float scale = 1 / (1 - args.p);
  for_each(context, args.count, 4096, [&](int64_t i) {
    args.out[i] = dropout_keeps(args.seed, static_cast<uint64_t>(args.first + i), args.p) ? args.x[i] * scale : 0;
  });
}

void add_scaled(const Context& context, const AddScaledArgs& args) {
  for_each(context, args.count, 4096, [&](int64_t i) { args.y[i] += args.scale * args.x[i]; });
}

}  // namespace nibble::kernels::reference
