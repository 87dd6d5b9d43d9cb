// LLM.int8() on one element: the code of x, as quant/int8_vectorwise.h defines it; and what its kernels share.
#pragma once

#include "kernels/cuda/device/job.cuh"

namespace nibble::kernels::cuda {

__device__ __forceinline__ float int8_scale(float absmax) { return __fmul_rn(127.0f, __frcp_rn(absmax)); }

/// rint(x * scale) within 127 of zero; NaN is 0.
__device__ __forceinline__ int encode_int8(float x, float scale) {
  const float q = rintf(__fmul_rn(x, scale));
  if (q != q) return 0;
  return static_cast<int>(fminf(fmaxf(q, -127.0f), 127.0f));
}

/// Four codes, the first in the lowest byte. Adding 1.5 * 2^23 rounds to an integer, whose lowest byte is the sum's.
__device__ __forceinline__ uint32_t encode_four_int8(const float (&x)[4], float scale) {
  uint32_t sums[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float q = __fmul_rn(x[i], scale);
    sums[i] = __float_as_uint(__fadd_rn(fminf(fmaxf(q == q ? q : 0.0f, -127.0f), 127.0f), 12582912.0f));
  }
  return __byte_perm(__byte_perm(sums[0], sums[1], 0x0040), __byte_perm(sums[2], sums[3], 0x0040), 0x5410);
}

__device__ __forceinline__ bool is_outlier(float x, float threshold) { return threshold > 0 && fabsf(x) >= threshold; }

/// x as an outlier's product takes it: rounded to T, unless that made it infinite.
template <typename T>
__device__ __forceinline__ float outlier_value(float x) {
  const float rounded = to_float(from_float<T>(x));
  if constexpr (__is_same(T, __half)) return isinf(rounded) ? x : rounded;
  return rounded;
}

/// Elements i to i + 3 of x.
__device__ __forceinline__ float4 four_of(const DeviceX& x, int64_t i, bool is_aligned) {
  return is_aligned ? x.four_at(i) : make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
}

__device__ __forceinline__ float block_max(float x, float* shared) {
  x = warp_max(x);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = (blockDim.x + 31) / 32;
  __syncthreads();
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  return warp_max(lane < warps ? shared[lane] : 0.0f);
}

}  // namespace nibble::kernels::cuda
