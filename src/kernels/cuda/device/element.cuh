// Elements of f32, bf16 and f16 arrays as floats, the dispatch on an element type, and reductions of warps and blocks.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "nibble/types.h"

namespace nibble::kernels::cuda {

inline constexpr unsigned kFullMask = 0xffffffffu;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(int8_t x) { return static_cast<float>(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

/// 2^x, within 2 ulp; what is denormal becomes 0.
__device__ __forceinline__ float power_of_two(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// To nearest even; too large for f16: infinity.
template <typename T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (sizeof(T) == 4)
    return x;
  else if constexpr (__is_same(T, __half))
    return __float2half_rn(x);
  else
    return __float2bfloat16_rn(x);
}

/// Calls body(T{}) with the element type that `dtype` names.
template <typename Body>
void with_float_type(DType dtype, const Body& body) {
  if (dtype == DType::bf16)
    body(__nv_bfloat16{});
  else if (dtype == DType::f16)
    body(__half{});
  else
    body(float{});
}

/// The sum over a warp, the same bits in every lane, in a fixed order.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(kFullMask, x, offset);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(kFullMask, x, offset));
  return x;
}

/// The sum over a block of at most 1024 threads, in every thread. `shared` holds 32 floats; ends with a barrier passed.
__device__ __forceinline__ float block_sum(float x, float* shared) {
  x = warp_sum(x);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = (blockDim.x + 31) / 32;
  __syncthreads();
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  return warp_sum(lane < warps ? shared[lane] : 0.0f);
}

/// Blocks of `threads` that cover `count`, at most `limit`.
inline unsigned blocks_for(int64_t count, int64_t threads, int64_t limit = 0x7fffffff) {
  const int64_t blocks = (count + threads - 1) / threads;
  return static_cast<unsigned>(blocks < limit ? blocks : limit);
}

inline cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }

}  // namespace nibble::kernels::cuda
