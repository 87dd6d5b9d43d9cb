// rope: rotates pairs of each head's first rotary_dim elements.
#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {

void rope(const Context& context, const RopeArgs& args) {
  const int64_t half = args.rotary_dim / 2;
  for_each(context, args.tokens * args.heads, 64, [&](int64_t index) {
    const int64_t token = index / args.heads;
    const int64_t head = token * args.stride + index % args.heads * args.head_dim;
    for (int64_t i = 0; i < half; ++i) {
      const int64_t first = head + (args.interleaved ? 2 * i : i);
      const int64_t second = head + (args.interleaved ? 2 * i + 1 : i + half);
      const double cos = static_cast<double>(args.cos[token * half + i]);
      const double sin = static_cast<double>(args.sin[token * half + i]);
      const double a = static_cast<double>(load(args.x, args.x_dtype, first));
      const double b = static_cast<double>(load(args.x, args.x_dtype, second));
      store(args.x, args.x_dtype, first, static_cast<float>(a * cos - b * sin));
      store(args.x, args.x_dtype, second, static_cast<float>(b * cos + a * sin));
    }
  });
}

}  // namespace nibble::kernels::reference
