// Part of a 4-bit weight in bf16 or f16, for a product that reads it out of the L2 cache.
#pragma once

#include "kernels/cuda/device/absmax.cuh"
#include "kernels/cuda/device/weights_tile.cuh"

namespace nibble::kernels::cuda {

struct PanelArgs {
  const uint8_t* packed;
  Absmax absmax;
  int64_t vectors;   // of 8 values
  int vector_shift;  // log2 of the vectors of a block
  void* out;
  float book[16];
};

inline constexpr int kPanelThreads = 512, kPanelVectors = 4;  // vectors: under way at a time

/// Each value is code book times absmax, rounded once. Unlike dequantize_4bit's, the stores ask to stay in the cache.
template <typename T>
__global__ void __launch_bounds__(kPanelThreads) decode_panel_kernel(const __grid_constant__ PanelArgs args) {
  __shared__ float2 pairs[256][16];  // of a byte, a copy for each lane of a half warp
  for (int i = threadIdx.x; i < 256 * 16; i += kPanelThreads)
    pairs[i / 16][i % 16] = make_float2(args.book[i / 256], args.book[i / 16 % 16]);
  __syncthreads();
  const float2* table = pairs[0] + threadIdx.x % 16;
  const int64_t stride = int64_t{gridDim.x} * kPanelThreads;
  for (int64_t first = int64_t{blockIdx.x} * kPanelThreads + threadIdx.x; first < args.vectors;
       first += kPanelVectors * stride) {
    uint32_t words[kPanelVectors];
    float scales[kPanelVectors];
#pragma unroll
    for (int v = 0; v < kPanelVectors; ++v) {
      const int64_t at = first + v * stride;
      words[v] = at < args.vectors ? __ldcs(reinterpret_cast<const uint32_t*>(args.packed) + at) : 0;
      scales[v] = at < args.vectors ? absmax_at(args.absmax, at >> args.vector_shift) : 0.0f;
    }
#pragma unroll
    for (int v = 0; v < kPanelVectors; ++v) {
      const int64_t at = first + v * stride;
      if (at >= args.vectors) break;
      uint32_t out[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = table[(words[v] >> (8 * i) & 255) * 16];
        out[i] = round_pair<T>(__fmul_rn(pair.x, scales[v]), __fmul_rn(pair.y, scales[v]));
      }
      static_cast<uint4*>(args.out)[at] = make_uint4(out[0], out[1], out[2], out[3]);
    }
  }
}

}  // namespace nibble::kernels::cuda
