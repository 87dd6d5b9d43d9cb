// sum_squares: squares of many arrays in one parallel loop.
#include "kernels/cpu/isa/optimizer_block.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

double sum_chunk(const SumSquaresJob& job, int64_t chunk) {
  SquareSum sum;
  const int64_t end = min_of(job.count, (chunk + 1) * kOptimizerChunk);
  for (int64_t begin = chunk * kOptimizerChunk; begin < end; begin += kStateBlock) {
    BlockBuffer buffer;
    const int64_t count = min_of(kStateBlock, end - begin);
    add_squares(open_block(job.x, job.dtype, begin, count, buffer), count, sum);
  }
  return sum.total();
}

}  // namespace

void sum_squares(const Context& context, const SumSquaresArgs& args) {
  for_chunks(
      context, args.jobs, args.count, [](const SumSquaresJob& job) { return job.count; },
      [](const SumSquaresJob& job) { return job.chunks_before; },
      [&](const SumSquaresJob& job, int64_t chunk) {
        args.partials[job.chunks_before + chunk] = sum_chunk(job, chunk);
      });
  for (int64_t j = 0; j < args.count; ++j) {
    args.sums[j] = 0;
    const SumSquaresJob& job = args.jobs[j];
    for (int64_t chunk = 0; chunk < chunks_of(job.count); ++chunk)
      args.sums[j] += args.partials[job.chunks_before + chunk];
  }
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
