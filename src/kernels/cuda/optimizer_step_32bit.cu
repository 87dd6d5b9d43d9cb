// optimizer_step_32bit: one launch for all parameters; a warp 256 elements, eight a lane.
#include <vector>

#include "kernels/cuda/device/optimizer_job.cuh"
#include "kernels/cuda/device/optimizer_norms.cuh"
#include "kernels/cuda/device/optimizer_rules.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 256;

template <typename Rule>
__device__ __forceinline__ void step_block(const DeviceJob& job, int64_t block) {
  const Share share(job, block);
  RawEight raw_p, raw_g, raw_s[Rule::kStates];
  float p[8], g[8], s[8][3], d[8], state[8];
  raw_p.load(job.parameter, job.dtype, share);
  raw_g.load(job.gradient, job.gradient_dtype, share);
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) raw_s[k].load(job.states[k], DType::f32, share);
  raw_p.unpack(job.dtype, p);
  raw_g.unpack(job.gradient_dtype, g);
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) {
    raw_s[k].unpack(DType::f32, state);
#pragma unroll
    for (int i = 0; i < 8; ++i) s[i][k] = state[i];
  }
  const OptimizerScalars c = job.scalars;
  step_eight<Rule>(c, p, g, s, d);
  move_eight(c, d, p);
  store_eight(job.parameter, job.dtype, share, p);
#pragma unroll
  for (int k = 0; k < Rule::kStates; ++k) {
#pragma unroll
    for (int i = 0; i < 8; ++i) state[i] = s[i][k];
    store_eight(job.states[k], DType::f32, share, state);
  }
}

template <typename Rule>
__global__ void __launch_bounds__(kThreads) step_32bit_kernel(const __grid_constant__ OptimizerTable table) {
  const int64_t share = (table.blocks + gridDim.x - 1) / gridDim.x;
  const int64_t end = min(table.blocks, share * (blockIdx.x + 1));
  int64_t b = share * blockIdx.x + threadIdx.x / 32;
  if (b >= end) return;
  int j = job_of_block(table.jobs, table.count, b);
  for (; b < end; b += kThreads / 32) {
    while (j + 1 < table.count && table.jobs[j + 1].blocks_before <= b) ++j;
    step_block<Rule>(table.jobs[j], b - table.jobs[j].blocks_before);
  }
}

/// States in fp32, for the pass that measures.
struct PlainStates {
  template <typename Rule>
  __device__ __forceinline__ void load(const DeviceJob& job, int64_t i, float (&s)[3]) const {
#pragma unroll
    for (int k = 0; k < Rule::kStates; ++k) s[k] = static_cast<const float*>(job.states[k])[i];
  }
  template <typename Rule>
  __device__ __forceinline__ static bool is_kept(const float (&)[3]) {
    return false;
  }
};

std::vector<DeviceJob> device_jobs(const OptimizerStep32BitArgs& args) {
  std::vector<DeviceJob> jobs;
  jobs.reserve(static_cast<size_t>(args.count));
  for (int64_t i = 0; i < args.count; ++i) {
    const OptimizerJob32Bit& from = args.jobs[i];
    if (from.of.count == 0) continue;
    DeviceJob job = device_job(from.of);
    float* const states[3] = {from.state1, from.state2, from.state3};
    for (int k = 0; k < 3; ++k) {
      job.states[k] = states[k];
      job.is_aligned = job.is_aligned && is_aligned(states[k], 16);
    }
    jobs.push_back(job);
  }
  return jobs;
}

}  // namespace

void optimizer_step_32bit(const Context& context, const OptimizerStep32BitArgs& args) {
  std::vector<DeviceJob> jobs = device_jobs(args);
  if (jobs.empty()) return;
  const cudaStream_t stream = stream_of(context.stream);
  const OptimizerTable table = upload_jobs(jobs, context.scratch->reserve(table_bytes(jobs)), stream);
  with_rule(args.rule, [&](auto rule) {
    using Rule = decltype(rule);
    if (has_trust_ratio(jobs)) measure_norms<Rule>(context, table, PlainStates{});
    const unsigned blocks = blocks_for(table.blocks, kThreads / 32, int64_t{context.multiprocessors} * 8);
    step_32bit_kernel<Rule><<<blocks, kThreads, 0, stream>>>(table);
  });
}

}  // namespace nibble::kernels::cuda
