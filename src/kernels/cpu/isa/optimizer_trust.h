// The loop over all parameters of an optimizer call, with the pass before it that trust ratios need.
#pragma once

#include "kernels/cpu/isa/square_sum.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

/// The rate, with the trust ratio of the finished norms.
NIBBLE_SIMD float trusted_rate(const OptimizerParameter& of) {
  const OptimizerScalars& c = of.scalars;
  if (!(c.max_unorm > 0)) return c.rate;
  const double bound = c.max_unorm * __builtin_sqrt(of.norms[0]), norm = __builtin_sqrt(of.norms[1]);
  return norm > bound ? static_cast<float>(c.rate * (bound / norm)) : c.rate;
}

/// Adds the chunks' norms into norms[0] and norms[1].
NIBBLE_SIMD void finish_norms(const OptimizerParameter& of) {
  double sums[2] = {0, 0};
  for (int64_t chunk = 0; chunk < chunks_of(of.count); ++chunk)
    for (int i = 0; i < 2; ++i) sums[i] += of.norms[2 * chunk + i];
  for (int i = 0; of.count > 0 && i < 2; ++i) of.norms[i] = sums[i];
}

/// measure(job, chunk, sums) for what has a trust ratio, then step(job, rate, chunk) for all.
template <typename Job, typename Measure, typename Step>
NIBBLE_SIMD void for_jobs(const Context& context, const Job* jobs, int64_t job_count, Measure&& measure, Step&& step) {
  const auto count_of = [](const Job& job) { return job.of.count; };
  const auto before_of = [](const Job& job) { return job.of.chunks_before; };
  bool is_measured = false;
  for (int64_t j = 0; j < job_count; ++j) is_measured = is_measured || jobs[j].of.scalars.max_unorm > 0;
  if (is_measured) {
    for_chunks(context, jobs, job_count, count_of, before_of, [&](const Job& job, int64_t chunk) {
      if (!(job.of.scalars.max_unorm > 0)) return;
      SquareSum sums[2];
      measure(job, chunk, sums);
      for (int i = 0; i < 2; ++i) job.of.norms[2 * chunk + i] = sums[i].total();
    });
    for (int64_t j = 0; j < job_count; ++j)
      if (jobs[j].of.scalars.max_unorm > 0) finish_norms(jobs[j].of);
  }
  for_chunks(context, jobs, job_count, count_of, before_of,
             [&](const Job& job, int64_t chunk) { step(job, trusted_rate(job.of), chunk); });
}

/// body(begin, count) for the blocks of a chunk.
template <typename Body>
NIBBLE_SIMD void for_blocks(const OptimizerParameter& of, int64_t chunk, Body&& body) {
  const int64_t end = min_of(of.count, (chunk + 1) * kOptimizerChunk);
  for (int64_t begin = chunk * kOptimizerChunk; begin < end; begin += kStateBlock)
    body(begin, min_of(kStateBlock, end - begin));
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
