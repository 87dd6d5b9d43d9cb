// quantize_int8_rows and dequantize_int8_rows: LLM.int8(), one scale a row, outliers left out.
#include <cmath>

#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"
#include "quant/int8_vectorwise.h"

namespace nibble::kernels::reference {

void quantize_int8_rows(const Context& context, const QuantizeInt8RowsArgs& args) {
  const auto element = [&](int64_t i) { return to_float(to_f16(load(args.x, args.dtype, i))); };
  const auto is_outlier = [&](float x) { return args.threshold > 0 && std::fabs(x) >= args.threshold; };
  for_each(context, args.rows, 1, [&](int64_t r) {
    const int64_t begin = r * args.cols;
    float absmax = 0;
    for (int64_t c = 0; c < args.cols; ++c) {
      const float x = element(begin + c);
      if (!is_outlier(x)) absmax = std::fmax(absmax, std::fabs(x));
    }
    args.absmax[r] = absmax;
    const float scale = 127.0f * (1.0f / absmax);  // as CUDA and torch divide: by way of the reciprocal
    for (int64_t c = 0; c < args.cols; ++c) {
      const float x = element(begin + c);
      args.q[begin + c] = is_outlier(x) ? int8_t{0} : quant::encode_int8(x, scale);
    }
  });
  if (args.threshold <= 0 || !args.outlier_columns) return;
  for (int64_t i = 0; i < args.rows * args.cols; ++i)
    if (is_outlier(element(i))) args.outlier_columns[i % args.cols] = 1;
}

void dequantize_int8_rows(const Context& context, const DequantizeInt8RowsArgs& args) {
  for_each(context, args.rows, 1, [&](int64_t r) {
    for (int64_t i = r * args.cols; i < (r + 1) * args.cols; ++i)
      store(args.out, args.dtype, i, static_cast<float>(args.q[i]) * args.absmax[r] * quant::kInt8Step);
  });
}

}  // namespace nibble::kernels::reference
