// split_heads: q, k and v out of rows that hold all three.
#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {

void split_heads(const Context& context, const SplitHeadsArgs& args) {
  const int64_t q_width = args.q_per_group * args.head_dim, kv_width = args.kv_per_group * args.head_dim;
  for_each(context, args.tokens * args.groups, 16, [&](int64_t group) {  // q, k and v are dense over (token, group)
    const auto copy = [&](void* to, int64_t width, int64_t from) {
      for (int64_t i = 0; i < width; ++i)
        store(to, args.dtype, group * width + i, load(args.x, args.dtype, group * (q_width + 2 * kv_width) + from + i));
    };
    copy(args.q, q_width, 0);
    copy(args.k, kv_width, q_width);
    copy(args.v, kv_width, q_width + kv_width);
  });
}

}  // namespace nibble::kernels::reference
