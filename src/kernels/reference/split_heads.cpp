// split_heads: q, k and v out of rows that hold all three.
#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {

void split_heads(const Context& context, const SplitHeadsArgs& args) {
  const int64_t q_width = args.q_per_group * args.head_dim, kv_width = args.kv_per_group * args.head_dim;
  for_each(context, args.tokens * args.groups, 16, [&](int64_t group) {  // q, k and v are dense over (token, group)
    const float* x = args.x + group * (q_width + 2 * kv_width);
    for (int64_t i = 0; i < q_width; ++i) args.q[group * q_width + i] = x[i];
    for (int64_t i = 0; i < kv_width; ++i) args.k[group * kv_width + i] = x[q_width + i];
    for (int64_t i = 0; i < kv_width; ++i) args.v[group * kv_width + i] = x[q_width + kv_width + i];
  });
}

}  // namespace nibble::kernels::reference
