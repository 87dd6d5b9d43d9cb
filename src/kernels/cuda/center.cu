// center: partial sums in double, joined in a fixed order.
#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 256;

/// The sum of a block's values, in thread 0.
__device__ double block_total(double x) {
  __shared__ double values[kThreads];
  values[threadIdx.x] = x;
  for (int step = kThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (threadIdx.x < step) values[threadIdx.x] += values[threadIdx.x + step];
  }
  return values[0];
}

__global__ void sum_kernel(const float* x, int64_t count, double* sums) {
  double sum = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads)
    sum += static_cast<double>(x[i]);
  sum = block_total(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

__global__ void mean_kernel(const double* sums, int64_t count, float* mean) {
  const double sum = block_total(sums[threadIdx.x]);
  if (threadIdx.x == 0) *mean = count > 0 ? static_cast<float>(sum / static_cast<double>(count)) : 0.0f;
}

__global__ void subtract_kernel(float* x, int64_t count, const float* mean) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) x[i] -= *mean;
}

}  // namespace

void center(const Context& context, const CenterArgs& args) {
  const cudaStream_t stream = stream_of(context.stream);
  auto* sums = static_cast<double*>(context.scratch->reserve(kThreads * static_cast<int64_t>(sizeof(double))));
  sum_kernel<<<kThreads, kThreads, 0, stream>>>(args.x, args.count, sums);
  mean_kernel<<<1, kThreads, 0, stream>>>(sums, args.count, args.mean);
  if (args.count > 0)
    subtract_kernel<<<blocks_for(args.count, kThreads), kThreads, 0, stream>>>(args.x, args.count, args.mean);
}

}  // namespace nibble::kernels::cuda
