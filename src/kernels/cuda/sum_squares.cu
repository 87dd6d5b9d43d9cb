// sum_squares: sixteen lanes a chunk, then a warp an array.
#include <vector>

#include "kernels/cuda/device/optimizer_norms.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

struct SumTable {
  const SumSquaresJob* jobs;
  int count;
  int64_t chunks;
  double* partials;
  double* sums;
};

template <typename T>
__device__ __forceinline__ double chunk_partial(const T* x, int count) {
  constexpr int kAhead = 16;  // loads under way
  double sum = 0;
  int i = static_cast<int>(threadIdx.x % kPartials);
  for (; i + (kAhead - 1) * kPartials < count; i += kAhead * kPartials) {
    T values[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) values[k] = x[i + k * kPartials];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const double value = to_float(values[k]);
      sum = fma(value, value, sum);  // the square is exact
    }
  }
  for (; i < count; i += kPartials) {
    const double value = to_float(x[i]);
    sum = fma(value, value, sum);
  }
  return sum;
}

__global__ void __launch_bounds__(128) chunk_kernel(const __grid_constant__ SumTable table) {
  const int64_t chunk = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kPartials;
  if (chunk >= table.chunks) return;
  int j = 0;
  for (int end = table.count; end - j > 1;) {
    const int middle = (j + end) / 2;
    (table.jobs[middle].chunks_before <= chunk ? j : end) = middle;
  }
  const SumSquaresJob& job = table.jobs[j];
  const int64_t first = (chunk - job.chunks_before) * kOptimizerChunk;
  const int count = static_cast<int>(min(kOptimizerChunk, job.count - first));
  double sum;
  if (job.dtype == DType::f32)
    sum = chunk_partial(static_cast<const float*>(job.x) + first, count);
  else if (job.dtype == DType::bf16)
    sum = chunk_partial(static_cast<const __nv_bfloat16*>(job.x) + first, count);
  else
    sum = chunk_partial(static_cast<const __half*>(job.x) + first, count);
  sum = sum_of_partials(sum);
  if (threadIdx.x % kPartials == 0) table.partials[chunk] = sum;
}

/// A warp an array: loads 32 sums at a time, and adds them in their order.
__global__ void __launch_bounds__(128) array_kernel(const __grid_constant__ SumTable table) {
  __shared__ double staged[4][32];
  const int j = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / 32), lane = threadIdx.x % 32;
  if (j >= table.count) return;
  const SumSquaresJob& job = table.jobs[j];
  double* stage = staged[threadIdx.x / 32];
  const int64_t chunks = (job.count + kOptimizerChunk - 1) / kOptimizerChunk;
  double sum = 0;
  for (int64_t first = 0; first < chunks; first += 32) {
    // A sum of squares is never -0, so that adding zeros changes nothing.
    stage[lane] = first + lane < chunks ? table.partials[job.chunks_before + first + lane] : 0;
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 32; ++i) sum += stage[i];
    __syncwarp();
  }
  if (lane == 0) table.sums[j] = sum;
}

}  // namespace

void sum_squares(const Context& context, const SumSquaresArgs& args) {
  if (args.count == 0) return;
  const cudaStream_t stream = stream_of(context.stream);
  const auto bytes = static_cast<int64_t>(sizeof(SumSquaresJob)) * args.count;
  auto* jobs = static_cast<SumSquaresJob*>(context.scratch->reserve(bytes));
  copy_small(jobs, args.jobs, static_cast<size_t>(bytes), stream);
  const SumSquaresJob& last = args.jobs[args.count - 1];
  const SumTable table{jobs, static_cast<int>(args.count),
                       last.chunks_before + (last.count + kOptimizerChunk - 1) / kOptimizerChunk, args.partials,
                       args.sums};
  if (table.chunks > 0) chunk_kernel<<<blocks_for(table.chunks * kPartials, 128), 128, 0, stream>>>(table);
  array_kernel<<<blocks_for(args.count * 32, 128), 128, 0, stream>>>(table);
}

}  // namespace nibble::kernels::cuda
