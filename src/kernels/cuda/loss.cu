// cross_entropy, dropout and add_scaled.
#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/device/vector.cuh"
#include "kernels/cuda/entries.h"
#include "kernels/dropout_rule.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kLossThreads = 1024;

/// A running sum of exponentials: total * e^maximum.
struct LogSum {
  float maximum, total;
};

__device__ __forceinline__ LogSum merge(LogSum a, LogSum b) {
  const float maximum = fmaxf(a.maximum, b.maximum);
  if (maximum == -INFINITY) return {maximum, 0};
  return {maximum, a.total * expf(a.maximum - maximum) + b.total * expf(b.maximum - maximum)};
}

__device__ __forceinline__ LogSum warp_merge(LogSum x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    x = merge(x, {__shfl_xor_sync(kFullMask, x.maximum, offset), __shfl_xor_sync(kFullMask, x.total, offset)});
  return x;
}

/// A block a row.
template <typename T>
__global__ void __launch_bounds__(kLossThreads) cross_entropy_kernel(CrossEntropyArgs args) {
  __shared__ LogSum sums[32];
  const int64_t row = blockIdx.x;
  T* logits = reinterpret_cast<T*>(args.logits) + row * args.vocab;
  const int32_t target = args.targets[row];
  if (target < 0) {
    for (int64_t c = threadIdx.x; c < args.vocab; c += kLossThreads) logits[c] = from_float<T>(0);
    if (threadIdx.x == 0) args.loss[row] = 0;
    return;
  }
  LogSum sum{-INFINITY, 0};
  for (int64_t c = threadIdx.x; c < args.vocab; c += kLossThreads) {
    const float x = to_float(logits[c]);
    if (x > sum.maximum) {
      sum.total *= expf(sum.maximum - x);
      sum.maximum = x;
    }
    sum.total += expf(x - sum.maximum);
  }
  sum = warp_merge(sum);
  const int lane = threadIdx.x % 32;
  if (lane == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = warp_merge(sums[lane]);
  const float at_target = to_float(logits[target]);
  __syncthreads();  // before the target is overwritten
  if (threadIdx.x == 0) args.loss[row] = logf(sum.total) + sum.maximum - at_target;
  const float inverse = 1.0f / sum.total;
  for (int64_t c = threadIdx.x; c < args.vocab; c += kLossThreads) {
    const float p = expf(to_float(logits[c]) - sum.maximum) * inverse;
    logits[c] = from_float<T>(args.scale * (c == target ? p - 1.0f : p));
  }
}

template <typename T>
__global__ void dropout_kernel(DropoutArgs args) {
  const T* x = reinterpret_cast<const T*>(args.x);
  T* out = reinterpret_cast<T*>(args.out);
  const float scale = 1.0f / (1.0f - args.p);
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < args.count; i += stride)
    out[i] = from_float<T>(
        dropout_keeps(args.seed, static_cast<uint64_t>(args.first + i), args.p) ? to_float(x[i]) * scale : 0.0f);
}

template <typename T>
__global__ void add_scaled_kernel(AddScaledArgs args) {
  const T* x = reinterpret_cast<const T*>(args.x);
  T* y = reinterpret_cast<T*>(args.y);
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < args.count; i += stride)
    y[i] = from_float<T>(fmaf(args.scale, to_float(x[i]), to_float(y[i])));
}

template <typename T>
__global__ void add_scaled_vectors(const T* x, float scale, T* y, int64_t vectors) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= vectors) return;
  float a[8], b[8];
  Vector8<T>::load(x + 8 * i).unpack(a);
  Vector8<T>::load(y + 8 * i).unpack(b);
#pragma unroll
  for (int j = 0; j < 8; ++j) b[j] = fmaf(scale, a[j], b[j]);
  Vector8<T>::pack(b).store(y + 8 * i);
}

}  // namespace

void cross_entropy(const Context& context, const CrossEntropyArgs& args) {
  if (args.rows == 0) return;
  with_float_type(args.dtype, [&](auto element) {
    cross_entropy_kernel<decltype(element)>
        <<<static_cast<unsigned>(args.rows), kLossThreads, 0, stream_of(context.stream)>>>(args);
  });
}

void dropout(const Context& context, const DropoutArgs& args) {
  if (args.count == 0) return;
  with_float_type(args.dtype, [&](auto element) {
    dropout_kernel<decltype(element)><<<blocks_for(args.count, 1024, 65536), 256, 0, stream_of(context.stream)>>>(args);
  });
}

void add_scaled(const Context& context, const AddScaledArgs& args) {
  if (args.count == 0) return;
  const cudaStream_t stream = stream_of(context.stream);
  with_float_type(args.dtype, [&](auto element) {
    using T = decltype(element);
    if (args.count % 8 == 0 && is_aligned(args.x, 16) && is_aligned(args.y, 16))
      add_scaled_vectors<T><<<blocks_for(args.count / 8, 256), 256, 0, stream>>>(
          reinterpret_cast<const T*>(args.x), args.scale, reinterpret_cast<T*>(args.y), args.count / 8);
    else
      add_scaled_kernel<T><<<blocks_for(args.count, 1024, 65536), 256, 0, stream>>>(args);
  });
}

}  // namespace nibble::kernels::cuda
