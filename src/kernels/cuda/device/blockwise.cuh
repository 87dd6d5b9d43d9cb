// What quantizing in blocks shares: the walk over eights of values, a block's absmax over neighbouring threads, and
// what its values are multiplied by.
#pragma once

#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/device/vector.cuh"

namespace nibble::kernels::cuda {

/// An absmax too small for a normal float counts as zero.
__device__ __forceinline__ float flush_denormal(float absmax) { return absmax < 1.17549435e-38f ? 0.0f : absmax; }

/// NaN for a block that counts as zero, so that every element of it takes the code of NaN.
__device__ __forceinline__ float inverse_of(float absmax) {
  return absmax == 0 ? __int_as_float(0x7fc00000) : __frcp_rn(absmax);
}

/// The largest of 2^log_lanes neighbouring threads' values, of several at once. All threads of the block; `shared` has
/// a place for each value of each warp.
template <int kCount, int kWarps>
__device__ __forceinline__ void largest_of_lanes(float (&maxima)[kCount], int log_lanes,
                                                 float (&shared)[kCount][kWarps]) {
  const auto reduce = [&](int lanes) {
    for (int offset = 1; offset < lanes; offset *= 2)
#pragma unroll
      for (float& maximum : maxima) maximum = fmaxf(maximum, __shfl_xor_sync(kFullMask, maximum, offset));
  };
  reduce(min(1 << log_lanes, 32));
  if (log_lanes <= 5) return;
  const int warps = 1 << (log_lanes - 5), warp = static_cast<int>(threadIdx.x) / 32, lane = threadIdx.x % 32;
  __syncthreads();  // what the last call left has been read
  if (lane == 0)
#pragma unroll
    for (int v = 0; v < kCount; ++v) shared[v][warp] = maxima[v];
  __syncthreads();
#pragma unroll
  for (int v = 0; v < kCount; ++v) maxima[v] = shared[v][warp / warps * warps + lane % warps];
  reduce(warps);
}

/// Blocks of 2^log_lanes times eight values, eight a thread and kVectors times as many under way: store(at, codes) gets
/// what encode() makes of the eight values over their absmax, for the `at`-th eight of x.
template <typename T, int kThreads, int kVectors, typename Encode, typename Store>
__device__ __forceinline__ void quantize_eights(const T* x, int64_t vectors, int log_lanes, float* absmax,
                                                float (&largest)[kVectors][kThreads / 32], const Encode& encode,
                                                const Store& store) {
  const int64_t stride = int64_t{gridDim.x} * kThreads * kVectors;
  for (int64_t base = int64_t{blockIdx.x} * kThreads * kVectors + threadIdx.x; base - threadIdx.x < vectors;
       base += stride) {
    Vector8<T> raw[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = base + v * kThreads;
      raw[v] = at < vectors ? Vector8<T>::load(x + 8 * at) : Vector8<T>{};
    }
    float maxima[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) maxima[v] = raw[v].largest();
    largest_of_lanes(maxima, log_lanes, largest);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = base + v * kThreads;
      const float maximum = flush_denormal(maxima[v]), inverse = inverse_of(maximum);
      float y[8];
      raw[v].unpack(y);
#pragma unroll
      for (float& value : y) value = __fmul_rn(value, inverse);
      const auto codes = encode(y);
      if (at >= vectors) continue;
      store(at, codes);
      if ((at & ((int64_t{1} << log_lanes) - 1)) == 0) absmax[at >> log_lanes] = maximum;
    }
  }
}

}  // namespace nibble::kernels::cuda
