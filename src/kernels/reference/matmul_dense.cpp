// matmul_dense: a weight of plain floats.
#include "kernels/reference/entries.h"
#include "kernels/reference/matmul.h"

namespace nibble::kernels::reference {

void matmul_dense(const Context& context, const MatmulInput& input, const MatmulDenseJob* jobs, int64_t count) {
  multiply(context, input, jobs, count, [&](const MatmulDenseJob& job, int64_t n, float* w) {
    for (int64_t c = 0; c < input.cols; ++c) w[c] = load(job.w, job.dtype, n * input.cols + c);
  });
}

}  // namespace nibble::kernels::reference
