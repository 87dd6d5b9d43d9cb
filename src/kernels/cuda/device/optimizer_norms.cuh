// Sums of squares in the order of the reference, and the trust ratios that follow from them: sixteen lanes a chunk, one
// for each partial sum.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/cuda/device/optimizer_job.cuh"
#include "kernels/cuda/device/optimizer_rules.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kPartials = 16;

/// The partial sums of sixteen lanes, added in their order; in every lane.
__device__ __forceinline__ double sum_of_partials(double partial) {
  const unsigned mask = 0xffffu << (threadIdx.x & 16);
  double sum = 0;
#pragma unroll
  for (int i = 0; i < kPartials; ++i) sum += __shfl_sync(mask, partial, i, kPartials);
  return sum;
}

inline bool has_trust_ratio(const std::vector<DeviceJob>& jobs) {
  return std::any_of(jobs.begin(), jobs.end(), [](const DeviceJob& job) { return job.scalars.max_unorm > 0; });
}

/// Squares of parameters and updates of one chunk, into its job's norms.
template <typename Rule, typename States>
__global__ void __launch_bounds__(256) measure_kernel(const OptimizerTable table, const States states) {
  const int64_t chunk = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kPartials;
  if (chunk >= table.chunks) return;
  int j = 0;
  for (int end = table.count; end - j > 1;) {
    const int middle = (j + end) / 2;
    (table.jobs[middle].chunks_before <= chunk ? j : end) = middle;
  }
  const DeviceJob& job = table.jobs[j];
  const OptimizerScalars c = job.scalars;
  if (!(c.max_unorm > 0)) return;
  const int64_t first = (chunk - job.chunks_before) * kOptimizerChunk;
  const int64_t end = min(job.count, first + kOptimizerChunk);
  double parameter = 0, update = 0;
  for (int64_t i = first + threadIdx.x % kPartials; i < end; i += kPartials) {
    float s[3];
    states.template load<Rule>(job, i, s);
    const float p = load_one(job.parameter, job.dtype, i);
    const float d = exact_step<Rule>(c, scaled_gradient<Rule>(c, p, load_one(job.gradient, job.gradient_dtype, i)), s);
    if (States::template is_kept<Rule>(s)) continue;
    const double scaled = __fmul_rn(d, c.unorm_scale);
    parameter += double{p} * double{p};
    update += scaled * scaled;
  }
  parameter = sum_of_partials(parameter);
  update = sum_of_partials(update);
  if (threadIdx.x % kPartials != 0) return;
  job.norms[2 * (first / kOptimizerChunk)] = parameter;
  job.norms[2 * (first / kOptimizerChunk) + 1] = update;
}

/// Adds the chunks' sums, and puts the trust ratio into the rate.
template <typename Unused>
__global__ void trust_kernel(const OptimizerTable table) {
  const int j = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (j >= table.count || !(table.jobs[j].scalars.max_unorm > 0)) return;
  DeviceJob& job = table.jobs[j];
  const int64_t chunks = (job.count + kOptimizerChunk - 1) / kOptimizerChunk;
  double sums[2] = {0, 0};
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int i = 0; i < 2; ++i) sums[i] += job.norms[2 * chunk + i];
  for (int i = 0; i < 2; ++i) job.norms[i] = sums[i];
  const double bound = double{job.scalars.max_unorm} * sqrt(sums[0]), norm = sqrt(sums[1]);
  if (norm > bound) job.scalars.rate = static_cast<float>(double{job.scalars.rate} * (bound / norm));
}

template <typename Rule, typename States>
void measure_norms(const Context& context, const OptimizerTable& table, const States& states) {
  const cudaStream_t stream = stream_of(context.stream);
  measure_kernel<Rule><<<blocks_for(table.chunks * kPartials, 256), 256, 0, stream>>>(table, states);
  trust_kernel<void><<<blocks_for(table.count, 128), 128, 0, stream>>>(table);
}

}  // namespace nibble::kernels::cuda
