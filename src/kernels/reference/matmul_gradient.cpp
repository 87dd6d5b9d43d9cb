// input_gradient and weight_gradient: the two gradients of y = x w^T, summed in double.
#include <vector>

#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {
namespace {

float weight_at(const WeightView& w, int64_t row, int64_t col, int64_t cols) {
  const int64_t i = row * cols + col;
  switch (w.kind) {
    case WeightView::Kind::dense:
      return load(w.data, w.dtype, i);
    case WeightView::Kind::four_bit:
      return w.code_book[code_4bit(static_cast<const uint8_t*>(w.data), i)] * absmax_of(*w.absmax, i / w.block);
    case WeightView::Kind::int8:
      return static_cast<float>(static_cast<const int8_t*>(w.data)[i]) * w.row_absmax[row] * (1.0f / 127.0f);
  }
  return 0;
}

}  // namespace

void input_gradient(const Context& context, const InputGradientArgs& args) {
  for_each(context, args.cols, 1, [&](int64_t c) {
    std::vector<double> column(static_cast<size_t>(args.rows));
    const auto rounded = [&](float value) {
      return static_cast<double>(args.compute == DType::bf16 ? round_to(DType::bf16, value) : value);
    };
    for (int64_t r = 0; r < args.rows; ++r)
      column[static_cast<size_t>(r)] = rounded(weight_at(args.w, r, c, args.cols));
    for (int64_t i = 0; i < args.m; ++i) {
      double sum = 0;
      for (int64_t r = 0; r < args.rows; ++r)
        sum += rounded(args.dy[i * args.dy_stride + r]) * column[static_cast<size_t>(r)];
      put(args.dx[i * args.cols + c], sum, args.accumulate);
    }
  });
}

void weight_gradient(const Context& context, const WeightGradientArgs& args) {
  for_each(context, args.rows, 1, [&](int64_t r) {
    for (int64_t c = 0; c < args.cols; ++c) {
      double sum = 0;
      for (int64_t i = 0; i < args.m; ++i)
        sum += static_cast<double>(args.dy[i * args.rows + r]) * static_cast<double>(args.x[i * args.cols + c]);
      put(args.dw[r * args.cols + c], sum, args.accumulate);
    }
  });
}

}  // namespace nibble::kernels::reference
