// low_rank_update and low_rank_gradient: an adapter's products, summed in double.
#include <vector>

#include "kernels/dropout_rule.h"
#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {
namespace {

/// What a and b are rounded to: the activations' type.
double factor_at(const float* factors, DType dtype, int64_t i) {
  return static_cast<double>(round_to(dtype, factors[i]));
}

/// Dropout of the element `i` of x.
double dropped(float p, uint64_t seed, int64_t i, double value) {
  if (p == 0) return value;
  return dropout_keeps(seed, static_cast<uint64_t>(i), p) ? value * static_cast<double>(1 / (1 - p)) : 0;
}

int64_t low_stride(int64_t m) { return (m + 7) / 8 * 8; }

}  // namespace

void low_rank_update(const Context& context, const LowRankArgs& args) {
  for_each(context, args.m, 1, [&](int64_t i) {
    std::vector<double> low(static_cast<size_t>(args.rank));
    for (int64_t j = 0; j < args.rank; ++j) {
      double sum = 0;
      for (int64_t c = 0; c < args.cols; ++c) {
        const int64_t at = i * args.cols + c;
        sum += dropped(args.p, args.seed, at, static_cast<double>(load(args.x, args.dtype, at))) *
               factor_at(args.a, args.dtype, j * args.cols + c);
      }
      const float value = round_to(args.dtype, args.scale * static_cast<float>(sum));
      store(args.low_transposed, args.dtype, j * low_stride(args.m) + i, value);
      low[static_cast<size_t>(j)] = static_cast<double>(value);
    }
    for (int64_t n = 0; args.y && n < args.rows; ++n) {
      const int64_t at = i * args.rows + n;
      double sum = static_cast<double>(load(args.y, args.dtype, at));
      for (int64_t j = 0; j < args.rank; ++j)
        sum += low[static_cast<size_t>(j)] * factor_at(args.b, args.dtype, n * args.rank + j);
      store(args.y, args.dtype, at, static_cast<float>(sum));
    }
  });
}

void low_rank_gradient(const Context& context, const LowRankGradientArgs& args) {
  std::vector<double> dlow(static_cast<size_t>(args.m * args.rank));
  for_each(context, args.m, 1, [&](int64_t i) {
    for (int64_t j = 0; j < args.rank; ++j) {
      double sum = 0;
      for (int64_t n = 0; n < args.rows; ++n)
        sum += static_cast<double>(load(args.dy, args.dtype, i * args.rows + n)) *
               factor_at(args.b, args.dtype, n * args.rank + j);
      dlow[static_cast<size_t>(i * args.rank + j)] =
          static_cast<double>(round_to(args.dtype, args.scale * static_cast<float>(sum)));
    }
  });
  for_each(context, args.db ? args.rows : 0, 1, [&](int64_t n) {
    for (int64_t j = 0; j < args.rank; ++j) {
      double sum = 0;
      for (int64_t i = 0; i < args.m; ++i)
        sum += static_cast<double>(load(args.dy, args.dtype, i * args.rows + n)) *
               static_cast<double>(load(args.low_transposed, args.dtype, j * low_stride(args.m) + i));
      put(args.db[n * args.rank + j], sum, args.accumulate_b);
    }
  });
  for_each(context, args.cols, 1, [&](int64_t c) {
    for (int64_t j = 0; args.da && j < args.rank; ++j) {
      double sum = 0;
      for (int64_t i = 0; i < args.m; ++i) {
        const int64_t at = i * args.cols + c;
        sum += dlow[static_cast<size_t>(i * args.rank + j)] *
               dropped(args.p, args.seed, at, static_cast<double>(load(args.x, args.dtype, at)));
      }
      put(args.da[j * args.cols + c], sum, args.accumulate_a);
    }
    for (int64_t i = 0; args.dx && i < args.m; ++i) {
      const int64_t at = i * args.cols + c;
      double sum = 0;
      for (int64_t j = 0; j < args.rank; ++j)
        sum += dlow[static_cast<size_t>(i * args.rank + j)] * factor_at(args.a, args.dtype, j * args.cols + c);
      const double value = static_cast<double>(load(args.dx, args.dtype, at)) + dropped(args.p, args.seed, at, sum);
      store(args.dx, args.dtype, at, static_cast<float>(value));
    }
  });
}

}  // namespace nibble::kernels::reference
