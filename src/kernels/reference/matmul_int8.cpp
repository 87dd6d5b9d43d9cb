// matmul_int8: LLM.int8(), integer products for ordinary columns and plain ones for columns that hold an outlier.
#include <cmath>

#include "kernels/reference/entries.h"
#include "kernels/reference/matmul.h"
#include "quant/int8_vectorwise.h"

namespace nibble::kernels::reference {
namespace {

/// The left side, quantized once for all jobs.
struct QuantizedInput {
  std::vector<int8_t> q;          // (m, cols), 0 in outlier columns
  std::vector<float> absmax;      // (m)
  std::vector<int64_t> outliers;  // columns with |x| >= threshold in any row, ascending
};

QuantizedInput quantize(const Context& context, const MatmulInput& input, float threshold) {
  const auto size = static_cast<size_t>(input.m * input.cols);
  QuantizedInput result{std::vector<int8_t>(size), std::vector<float>(static_cast<size_t>(input.m)), {}};
  std::vector<f16_t> x(size);
  for (size_t i = 0; i < size; ++i) x[i] = to_f16(load(input.x, input.x_dtype, static_cast<int64_t>(i)));
  std::vector<uint8_t> is_outlier(static_cast<size_t>(input.cols));
  quantize_int8_rows(context, {x.data(), DType::f16, input.m, input.cols, threshold, result.q.data(),
                               result.absmax.data(), is_outlier.data()});
  for (int64_t c = 0; c < input.cols; ++c) {
    if (!is_outlier[static_cast<size_t>(c)]) continue;
    result.outliers.push_back(c);
    for (int64_t i = 0; i < input.m; ++i) result.q[static_cast<size_t>(i * input.cols + c)] = 0;
  }
  return result;
}

/// An element of x in a product of its own: f16 does not make what is too large for it infinite.
float outlier_value(DType compute, float x) {
  const float rounded = round_to(compute, x);
  return std::isinf(rounded) ? x : rounded;
}

int64_t dot_int8(const int8_t* a, const int8_t* b, int64_t cols) {
  int64_t sum = 0;
  for (int64_t c = 0; c < cols; ++c) sum += int64_t{a[c]} * b[c];
  return sum;
}

}  // namespace

void matmul_int8(const Context& context, const MatmulInput& input, float threshold, const MatmulInt8Job* jobs,
                 int64_t count) {
  const QuantizedInput x = quantize(context, input, threshold);
  for (int64_t j = 0; j < count; ++j) {
    const MatmulInt8Job& job = jobs[j];
    for_each(context, job.rows, 1, [&](int64_t n) {
      const int8_t* w = job.w + n * input.cols;
      const auto decoded = [&](int64_t c) {
        return round_to(input.compute, static_cast<float>(w[c]) * job.absmax[n] * quant::kInt8Step);
      };
      for (int64_t i = 0; i < input.m; ++i) {
        const double scale = static_cast<double>(x.absmax[static_cast<size_t>(i)]) * static_cast<double>(job.absmax[n]);
        double sum =
            static_cast<double>(dot_int8(x.q.data() + i * input.cols, w, input.cols)) * scale / (127.0 * 127.0);
        for (const int64_t c : x.outliers)
          sum += static_cast<double>(outlier_value(input.compute, load(input.x, input.x_dtype, i * input.cols + c))) *
                 static_cast<double>(decoded(c));
        put(job.out, i, n, sum);
      }
    });
  }
}

}  // namespace nibble::kernels::reference
