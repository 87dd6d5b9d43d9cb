// sum_squares: squares of whole arrays, chunk by chunk.
#include "kernels/reference/sum_squares.h"

#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {

void sum_squares(const Context& context, const SumSquaresArgs& args) {
  for_each(context, args.count, 1, [&](int64_t j) {
    const SumSquaresJob& job = args.jobs[j];
    args.sums[j] = 0;
    for (int64_t begin = 0; begin < job.count; begin += kOptimizerChunk) {
      SquareSum sum;
      for (int64_t i = begin; i < std::min(job.count, begin + kOptimizerChunk); ++i)
        sum.add(i - begin, load(job.x, job.dtype, i));
      const double total = sum.total();
      args.partials[job.chunks_before + begin / kOptimizerChunk] = total;
      args.sums[j] += total;
    }
  });
}

}  // namespace nibble::kernels::reference
