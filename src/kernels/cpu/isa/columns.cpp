// scale_columns and dot_rows: rows in parallel. sum_columns: columns in parallel, rows in ascending order.
#include "kernels/cpu/isa/simd.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

void scale_columns(const Context& context, const ScaleColumnsArgs& args) {
  for_ranges(context, args.rows, max_of(1, 16384 / max_of(1, args.cols)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* x = args.x + r * args.cols;
      float* out = args.out + r * args.out_stride;
      for (int64_t c = 0; c < args.cols; c += kLanes) {
        const int64_t n = min_of(kLanes, args.cols - c);
        F32 value = load_first(x + c, n) * load_first(args.scale + c, n);
        if (args.bias) value = value + load_first(args.bias + c, n);
        if (args.accumulate) value = value + load_first(out + c, n);
        store_first(out + c, value, n);
      }
    }
  });
}

void dot_rows(const Context& context, const DotRowsArgs& args) {
  for_ranges(context, args.count, max_of(1, 16384 / max_of(1, args.cols)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float *x = args.x + i * args.cols, *y = args.y + args.rows[i] * args.cols;
      F32 sum = set1(0);
      for (int64_t c = 0; c < args.cols; c += kLanes) {
        const int64_t n = min_of(kLanes, args.cols - c);
        sum = fma(load_first(x + c, n), load_first(y + c, n), sum);
      }
      args.dots[i] = reduce_add(sum);
    }
  });
}

void sum_columns(const Context& context, const SumColumnsArgs& args) {
  for_ranges(context, ceil_of(args.cols, kLanes), 8, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin * kLanes; c < min_of(args.cols, end * kLanes); c += kLanes) {
      const int64_t n = min_of(kLanes, args.cols - c);
      F32 sum = set1(0);
      for (int64_t r = 0; r < args.rows; ++r) {
        const F32 x = load_first(args.x + r * args.cols + c, n);
        sum = args.y ? fma(x, load_first(args.y + r * args.cols + c, n), sum) : sum + x;
      }
      store_first(args.sums + c, load_first(args.sums + c, n) + sum, n);
    }
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
