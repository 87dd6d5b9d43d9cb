// What the three matmuls share: the rounded left side, an exact dot product, and where a result goes.
#pragma once

#include <vector>

#include "kernels/reference/element.h"

namespace nibble::kernels::reference {

/// x (m, cols), each element rounded to the compute dtype.
inline std::vector<float> rounded_input(const MatmulInput& input) {
  std::vector<float> x(static_cast<size_t>(input.m * input.cols));
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = round_to(input.compute, load(input.x, input.x_dtype, static_cast<int64_t>(i)));
  return x;
}

/// Products of floats are exact in double; only the sum rounds, in the order of the columns.
inline double dot(const float* x, const float* w, int64_t cols) {
  double sum = 0;
  for (int64_t c = 0; c < cols; ++c) sum += static_cast<double>(x[c]) * static_cast<double>(w[c]);
  return sum;
}

/// One rounding to fp32 after the bias; += rounds once more, as does a narrower y.
inline void put(const MatmulOutput& out, int64_t i, int64_t n, double sum) {
  const float y = static_cast<float>(out.bias ? sum + static_cast<double>(out.bias[n]) : sum);
  const int64_t at = i * out.y_stride + n;
  store(out.y, out.y_dtype, at, out.accumulate ? load(out.y, out.y_dtype, at) + y : y);
}

/// For each job and weight row n: decode(job, n, w) fills w (cols), then y[i, n] = x_i . w for all i.
template <typename Job, typename Decode>
void multiply(const Context& context, const MatmulInput& input, const Job* jobs, int64_t count, const Decode& decode) {
  const std::vector<float> x = rounded_input(input);
  for (int64_t j = 0; j < count; ++j) {
    const Job& job = jobs[j];
    for_each(context, job.rows, 1, [&](int64_t n) {
      std::vector<float> w(static_cast<size_t>(input.cols));
      decode(job, n, w.data());
      for (float& value : w) value = round_to(input.compute, value);
      for (int64_t i = 0; i < input.m; ++i) put(job.out, i, n, dot(x.data() + i * input.cols, w.data(), input.cols));
    });
  }
}

}  // namespace nibble::kernels::reference
