// Part of a 4-bit weight in bf16 or f16, for a product that reads it out of the L2 cache.
#pragma once

#include "kernels/cuda/device/absmax.cuh"
#include "kernels/cuda/device/weights_tile.cuh"

namespace nibble::kernels::cuda {

struct PanelArgs {
  const uint8_t* packed;
  Absmax absmax;
  int64_t vectors;   // of 8 values
  int vector_shift;  // log2 of the vectors of a block, 2 or more
  void* out;
  float book[16];
};

inline constexpr int kPanelThreads = 512, kPanelVectors = 4;  // vectors: under way at a time

/// Each value is code book times absmax, rounded once. Unlike dequantize_4bit's, the stores ask to stay in the cache.
/// A warp takes 128 neighbouring vectors at a time, and each of its lanes the absmax of one of their blocks.
template <typename T>
__global__ void __launch_bounds__(kPanelThreads) decode_panel_kernel(const __grid_constant__ PanelArgs args) {
  constexpr int kRun = 32 * kPanelVectors;
  __shared__ float2 pairs[256][16];  // of a byte, a copy for each lane of a half warp
  __shared__ float nested_book[256];
  const bool is_nested = args.absmax.values == nullptr;
  if (is_nested && threadIdx.x < 256) nested_book[threadIdx.x] = args.absmax.nested_code_book[threadIdx.x];
  for (int i = threadIdx.x; i < 256 * 16; i += kPanelThreads)
    pairs[i / 16][i % 16] = make_float2(args.book[i / 256], args.book[i / 16 % 16]);
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float2* table = pairs[0] + lane % 16;
  const int64_t stride = int64_t{gridDim.x} * kPanelThreads / 32 * kRun;
  const int64_t blocks = ((args.vectors - 1) >> args.vector_shift) + 1;
  for (int64_t first = (int64_t{blockIdx.x} * kPanelThreads + threadIdx.x) / 32 * kRun; first < args.vectors;
       first += stride) {
    uint32_t words[kPanelVectors];
#pragma unroll
    for (int v = 0; v < kPanelVectors; ++v) {
      const int64_t at = first + 32 * v + lane;
      words[v] = at < args.vectors ? __ldcs(reinterpret_cast<const uint32_t*>(args.packed) + at) : 0;
    }
    const int64_t block = min((first >> args.vector_shift) + lane, blocks - 1);
    float scale;
    if (is_nested)
      scale = nested_value(nested_book[args.absmax.codes[block]],
                           args.absmax.nested_absmax[block / quant::kNestedBlock], args.absmax.offset);
    else
      scale = args.absmax.values[block];
#pragma unroll
    for (int v = 0; v < kPanelVectors; ++v) {
      const int64_t at = first + 32 * v + lane;
      const float own = __shfl_sync(kFullMask, scale, (32 * v + lane) >> args.vector_shift);
      if (at >= args.vectors) continue;
      static_cast<uint4*>(args.out)[at] = decode_word<T>(words[v], own, table);
    }
  }
}

}  // namespace nibble::kernels::cuda
