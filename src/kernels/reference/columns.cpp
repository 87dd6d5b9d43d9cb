// scale_columns and sum_columns.
#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {

void scale_columns(const Context& context, const ScaleColumnsArgs& args) {
  for_each(context, args.rows, 1, [&](int64_t r) {
    for (int64_t c = 0; c < args.cols; ++c) {
      const double bias = args.bias ? static_cast<double>(args.bias[c]) : 0;
      put(args.out[r * args.out_stride + c],
          static_cast<double>(args.x[r * args.cols + c]) * static_cast<double>(args.scale[c]) + bias, args.accumulate);
    }
  });
}

void sum_columns(const Context& context, const SumColumnsArgs& args) {
  for_each(context, args.cols, 64, [&](int64_t c) {
    double sum = 0;
    for (int64_t r = 0; r < args.rows; ++r) {
      const int64_t at = r * args.cols + c;
      sum += static_cast<double>(args.x[at]) * (args.y ? static_cast<double>(args.y[at]) : 1);
    }
    put(args.sums[c], sum, true);
  });
}

}  // namespace nibble::kernels::reference
