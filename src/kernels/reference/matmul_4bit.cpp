// matmul_4bit: each weight is decoded in fp32, rounded once to the compute dtype, then multiplied.
#include "kernels/reference/entries.h"
#include "kernels/reference/matmul.h"

namespace nibble::kernels::reference {

void matmul_4bit(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
  multiply(context, input, jobs, count, [&](const Matmul4BitJob& job, int64_t n, float* w) {
    for (int64_t c = 0; c < input.cols; ++c) {
      const int64_t i = n * input.cols + c;  // blocks run over the flattened weight
      w[c] = job.code_book[code_4bit(job.packed, i)] * absmax_of(job.absmax, i / job.block);
    }
  });
}

}  // namespace nibble::kernels::reference
