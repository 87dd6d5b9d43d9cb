// argmax: where a row is largest.
#include <cmath>

#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {

void argmax(const Context& context, const ArgmaxArgs& args) {
  for_each(context, args.rows, 1, [&](int64_t r) {
    float highest = -INFINITY;
    args.out[r] = -1;
    for (int64_t c = 0; c < args.cols; ++c) {
      const float value = args.x[r * args.cols + c];
      if (!(value > highest)) continue;
      highest = value;
      args.out[r] = static_cast<int32_t>(c);
    }
  });
}

}  // namespace nibble::kernels::reference
