// Sums of squares in the order that kernels.h states: the same bits for every instruction set.
#pragma once

#include "kernels/cpu/isa/simd.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

/// Sixteen partial sums of one chunk.
struct SquareSum {
  double partials[16] = {};
  double total() const {
    double sum = 0;
    for (const double partial : partials) sum += partial;
    return sum;
  }
};

/// x starts at a multiple of 16 in its chunk.
NIBBLE_SIMD void add_squares(const float* x, int64_t count, SquareSum& sum) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    for (int j = 0; j < 16; ++j) sum.partials[j] += static_cast<double>(x[i + j]) * static_cast<double>(x[i + j]);
  for (; i < count; ++i) sum.partials[i % 16] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
}

NIBBLE_SIMD int64_t chunks_of(int64_t count) { return ceil_of(count, kOptimizerChunk); }

/// body(job, chunk) for every chunk of every job, in one parallel loop. `count_of` and `before_of` give a job's size
/// and the chunks before it.
template <typename Job, typename Count, typename Before, typename Body>
NIBBLE_SIMD void for_chunks(const Context& context, const Job* jobs, int64_t job_count, Count&& count_of,
                            Before&& before_of, Body&& body) {
  if (job_count == 0) return;
  const Job& last = jobs[job_count - 1];
  const auto run = [&](int64_t index) {
    int64_t low = 0, high = job_count;  // the last job with before <= index
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      if (before_of(jobs[middle]) <= index)
        low = middle;
      else
        high = middle;
    }
    body(jobs[low], index - before_of(jobs[low]));
  };
  // In runs: where one begins, nothing was asked of the memory ahead.
  const int64_t chunks = before_of(last) + chunks_of(count_of(last)),
                threads = context.pool ? context.pool->threads() : 1;
  const int64_t run_length = max_of(1, min_of(32, chunks / (16 * threads)));
  for_ranges(context, chunks, run_length, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run(i);
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
