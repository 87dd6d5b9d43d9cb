// matmul for at most eight rows of x: weights are the tensor cores' left side, sixteen rows of them a tile; the warps
// of a block share a tile's columns and add their sums in a fixed order. Each warp streams its weights through a ring.
#pragma once

#include "kernels/cuda/device/async.cuh"
#include "kernels/cuda/device/job.cuh"
#include "kernels/cuda/device/tensor_core.cuh"

namespace nibble::kernels::cuda {

struct FewRowsArgs {
  DeviceJobs jobs;
  const float* x;  // (m, cols)
  int m, cols;
  float book[16];    // 4 bits: the code book times `book_scale`
  float book_scale;  // and what the sums are multiplied by in return
  float threshold;   // LLM.int8()
  int x_stride;      // elements between rows of x in shared memory
};

inline constexpr int kFewRowsTile = 16;
inline constexpr int kFewRowsMax = 8;
inline constexpr int kFewRowsStages = 4;
inline constexpr int kFewRowsSums = kFewRowsTile * kFewRowsMax;  // of a tile

/// Shared memory of a launch, in bytes.
template <typename Weights>
inline int64_t few_rows_shared(int warps, int m, int x_stride) {
  return Weights::kTableBytes + int64_t{warps} * kFewRowsStages * Weights::kSlotBytes +
         int64_t{2} * warps * kFewRowsSums * 4 +
         int64_t{m} * x_stride * static_cast<int64_t>(sizeof(typename Weights::X));
}

/// Weights: how a family's bytes become products; see weights_4bit.cuh and weights_dense.cuh.
template <typename Weights, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, 1) few_rows_kernel(const __grid_constant__ FewRowsArgs args) {
#if __CUDA_ARCH__ >= 800
  extern __shared__ __align__(128) uint8_t shared[];
  using X = typename Weights::X;
  uint8_t* ring = shared + Weights::kTableBytes;
  float* sums = reinterpret_cast<float*>(ring + kWarps * kFewRowsStages * Weights::kSlotBytes);
  X* x = reinterpret_cast<X*>(sums + 2 * kWarps * kFewRowsSums);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int chunks = (args.cols + Weights::kChunk - 1) / Weights::kChunk;
  const uint32_t slots = shared_address(ring) + warp * kFewRowsStages * Weights::kSlotBytes;
  const uint32_t slots_end = slots + kFewRowsStages * Weights::kSlotBytes;

  Weights weights(lane);
  int ahead_tile = warp < chunks ? static_cast<int>(blockIdx.x) : args.jobs.tiles, ahead_chunk = warp;
  uint32_t filling = slots;
  if (ahead_tile < args.jobs.tiles) weights.enter(args, ahead_tile);
  const auto prefetch = [&] {
    if (ahead_tile < args.jobs.tiles) {
      weights.prefetch(args, filling, ahead_chunk);
      ahead_chunk += kWarps;
      if (ahead_chunk >= chunks) {
        ahead_chunk = warp;
        ahead_tile += gridDim.x;
        if (ahead_tile < args.jobs.tiles) weights.enter(args, ahead_tile);
      }
    }
    commit_copies();
    filling = filling + Weights::kSlotBytes == slots_end ? slots : filling + Weights::kSlotBytes;
  };
#pragma unroll
  for (int s = 0; s < kFewRowsStages - 1; ++s) prefetch();
  Weights::fill_table(args, shared);
  Weights::stage_x(args, x, chunks * Weights::kChunk);
  __syncthreads();

  const X* x_row = x + min(lane / 4, args.m - 1) * args.x_stride;
  uint32_t reading = slots;
  int half = 0;
  for (int tile = blockIdx.x; tile < args.jobs.tiles; tile += gridDim.x) {
    weights.begin(args, tile);
    for (int chunk = warp; chunk < chunks; chunk += kWarps) {
      wait_copies<kFewRowsStages - 2>();
      __syncwarp();
      weights.multiply(args, reading, x_row, chunk);
      reading = reading + Weights::kSlotBytes == slots_end ? slots : reading + Weights::kSlotBytes;
      prefetch();  // into the slot that the iteration before has read
    }
    float* own = sums + (half * kWarps + warp) * kFewRowsSums;
#pragma unroll
    for (int i = 0; i < 4; ++i) own[i * 32 + lane] = weights.sum(i);
    __syncthreads();
    if (threadIdx.x < kFewRowsSums) {
      const float* first = sums + half * kWarps * kFewRowsSums + threadIdx.x;
      float sum = first[0];
#pragma unroll
      for (int w = 1; w < kWarps; ++w) sum += first[w * kFewRowsSums];
      const DeviceJob& job = args.jobs.of_tile(tile);
      const int row = (tile - job.first_tile) * kFewRowsTile + lane / 4 + 8 * (warp / 2);
      const int i = 2 * (lane % 4) + warp % 2;
      if (row < job.rows && i < args.m) put(job.out, i, row, weights.finish(args, job, row, i, sum));
    }
    half ^= 1;
  }
#endif
}

/// x rounded to T, dense rows to rows of `x_stride`, zeros up to `padded` columns.
template <typename T>
__device__ __forceinline__ void stage_rounded(const FewRowsArgs& args, T* x, int padded) {
  for (int i = 0; i < args.m; ++i) {
    const float* row = args.x + int64_t{i} * args.cols;
#pragma unroll 4
    for (int c = threadIdx.x; c < padded; c += blockDim.x)
      x[i * args.x_stride + c] = from_float<T>(c < args.cols ? row[c] : 0.0f);
  }
}

}  // namespace nibble::kernels::cuda
