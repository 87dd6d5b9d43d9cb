// argmax: blocks share a row, and the last of them to finish compares what they found.
#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kParts = 32;  // of a row

struct Best {
  float value;
  int column;  // -1: none yet
};

/// The larger value, of equals the lower column. Nothing is -infinity with column -1.
__device__ __forceinline__ Best better(Best a, Best b) {
  const bool is_b = b.value > a.value || (b.value == a.value && b.column >= 0 && (a.column < 0 || b.column < a.column));
  return is_b ? b : a;
}

/// Of all threads of a block of kThreads, in every thread.
__device__ Best block_best(Best best) {
  __shared__ Best found[kThreads / 32];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    best =
        better(best, {__shfl_xor_sync(kFullMask, best.value, offset), __shfl_xor_sync(kFullMask, best.column, offset)});
  __syncthreads();
  if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = best;
  __syncthreads();
  for (int w = 0; w < kThreads / 32; ++w) best = better(best, found[w]);
  return best;
}

__global__ void argmax_kernel(ArgmaxArgs args, Best* parts, unsigned* counters) {
  __shared__ bool is_last;
  const int64_t row = blockIdx.y;
  const float* x = args.x + row * args.cols;
  Best best{-INFINITY, -1};
  for (int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; c < args.cols; c += kParts * kThreads) {
    const float value = x[c];
    if (value > best.value) best = {value, static_cast<int>(c)};
  }
  best = block_best(best);
  if (threadIdx.x == 0) {
    parts[row * kParts + blockIdx.x] = best;
    __threadfence();
    is_last = atomicAdd(counters + row, 1u) == kParts - 1;
    if (is_last) counters[row] = 0;
    __threadfence();
  }
  __syncthreads();
  if (!is_last) return;
  best = {-INFINITY, -1};
  if (threadIdx.x < kParts) {
    const volatile Best& part = parts[row * kParts + threadIdx.x];
    best = {part.value, part.column};
  }
  best = block_best(best);
  if (threadIdx.x == 0) args.out[row] = best.column;
}

}  // namespace

void argmax(const Context& context, const ArgmaxArgs& all) {
  for (int64_t row = 0; row < all.rows; row += kCounters) {
    const int64_t rows = all.rows - row < kCounters ? all.rows - row : kCounters;
    const ArgmaxArgs args{all.x + row * all.cols, rows, all.cols, all.out + row};
    auto* parts = static_cast<Best*>(context.scratch->reserve(rows * kParts * static_cast<int64_t>(sizeof(Best))));
    argmax_kernel<<<dim3(kParts, static_cast<unsigned>(rows)), kThreads, 0, stream_of(context.stream)>>>(
        args, parts, context.counters);
  }
}

}  // namespace nibble::kernels::cuda
