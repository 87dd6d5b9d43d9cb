// matmul by 8- or 16-bit weights for at most eight rows of x: weights are the tensor cores' left side, sixteen rows of
// them a tile; the warps of a block share a tile's columns and add their sums in a fixed order. Each warp streams its
// weights through a ring.
#pragma once

#include "kernels/cuda/device/activation.cuh"
#include "kernels/cuda/device/async.cuh"
#include "kernels/cuda/device/dependent.cuh"
#include "kernels/cuda/device/job.cuh"
#include "kernels/cuda/device/tensor_core.cuh"

namespace nibble::kernels::cuda {

struct FewRowsArgs {
  DeviceJobs jobs;
  DeviceX x;  // (m, cols)
  int m, cols;
  float threshold;  // LLM.int8()
  // LLM.int8(): the norm of x, or null; and two jobs' results as one: gated_out = activation(first) * second.
  const float* norm_weight;
  float eps, weight_offset;
  bool is_gated;
  Activation activation;
  MatmulOutput gated_out;
  int x_stride;     // elements between rows of x in shared memory
  int extra_bytes;  // of shared memory, as Weights asks
};

inline constexpr int kFewRowsTile = 16;
inline constexpr int kFewRowsMax = 8;
inline constexpr int kFewRowsStages = 4;
inline constexpr int kFewRowsSums = kFewRowsTile * kFewRowsMax;  // of a tile

inline constexpr int kFewRowsWarps = 16;  // as many as a tile has rows

/// Shared memory of a launch, in bytes.
template <typename Weights>
inline int64_t few_rows_shared(int m, int x_stride, int extra_bytes) {
  return int64_t{kFewRowsWarps} * kFewRowsStages * Weights::kSlotBytes + int64_t{2} * kFewRowsWarps * kFewRowsSums * 4 +
         extra_bytes + int64_t{m} * x_stride * static_cast<int64_t>(sizeof(typename Weights::X));
}

/// Where a launch's shared memory is.
template <typename Weights>
struct FewRowsShared {
  uint8_t* ring;
  typename Weights::Sum* sums;
  uint8_t* extra;
  typename Weights::X* x;

  __device__ FewRowsShared(const FewRowsArgs& args, uint8_t* shared) : ring(shared) {
    sums = reinterpret_cast<typename Weights::Sum*>(ring + kFewRowsWarps * kFewRowsStages * Weights::kSlotBytes);
    extra = reinterpret_cast<uint8_t*>(sums + 2 * kFewRowsWarps * kFewRowsSums);
    x = reinterpret_cast<typename Weights::X*>(extra + args.extra_bytes);
  }
};

template <typename Sum>
__device__ __forceinline__ Sum sum_of_warps(const Sum* first) {
  Sum sum = first[0];
#pragma unroll
  for (int w = 1; w < kFewRowsWarps; ++w) sum += first[w * kFewRowsSums];
  return sum;
}

/// The end of a tile of eight rows of gate and eight of up.
template <typename Weights>
__device__ __forceinline__ void finish_gated_tile(const FewRowsArgs& args, const Weights& weights,
                                                  const FewRowsShared<Weights>& shared,
                                                  const typename Weights::Sum* sums, int tile, int half, int warp,
                                                  int lane) {
  if (warp >= 2) return;
  const auto* first = sums + warp * 32 + lane;
  const int row = tile * (kFewRowsTile / 2) + lane / 4, i = 2 * (lane % 4) + warp;
  if (row >= args.jobs.jobs[0].rows || i >= args.m) return;
  const auto value = [&](int j) {
    const DeviceJob& job = args.jobs.jobs[j];
    const auto sum = sum_of_warps(first + j * (kFewRowsSums / 2));
    const float product = weights.finish(args, shared, job, lane / 4 + 8 * j, row, i, half, sum);
    return product + (job.out.bias ? job.out.bias[row] : 0.0f);
  };
  const float gate = value(0), up = value(1);
  put(args.gated_out, i, row, activated(args.activation, gate) * up);
}

/// The warps' `sums` of a tile, added in the order of the warps, and stored: by four warps, of which this is `warp`.
template <typename Weights>
__device__ __forceinline__ void finish_tile(const FewRowsArgs& args, const Weights& weights,
                                            const FewRowsShared<Weights>& shared, const typename Weights::Sum* sums,
                                            int tile, int half, int warp, int lane) {
  if constexpr (Weights::kCanGate)
    if (args.is_gated) return finish_gated_tile(args, weights, shared, sums, tile, half, warp, lane);
  const DeviceJob& job = args.jobs.of_tile(tile);
  const int in_tile = lane / 4 + 8 * (warp / 2), row = (tile - job.first_tile) * kFewRowsTile + in_tile;
  const int i = 2 * (lane % 4) + warp % 2;
  if (row >= job.rows || i >= args.m) return;
  const auto sum = sum_of_warps(sums + warp * 32 + lane);
  put(job.out, i, row, weights.finish(args, shared, job, in_tile, row, i, half, sum));
}

/// Stages that are asked for before x. What comes later than x does not delay it: such weights call what they are given
/// when they have asked for x.
template <typename Weights>
constexpr int stages_before_x() {
  if constexpr (requires { Weights::kStagesBeforeX; }) return Weights::kStagesBeforeX;
  return kFewRowsStages - 1;
}

/// Weights: how a family's bytes become products; see weights_plain.cuh and weights_int8.cuh.
template <typename Weights>
__global__ void __launch_bounds__(kFewRowsWarps * 32, 1) few_rows_kernel(const __grid_constant__ FewRowsArgs args) {
#if __CUDA_ARCH__ >= 800
  allow_next_launch_where_possible();
  extern __shared__ __align__(128) uint8_t memory[];
  const FewRowsShared<Weights> shared(args, memory);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int chunks = (args.cols + Weights::kChunk - 1) / Weights::kChunk, tiles = args.jobs.tiles;
  const uint32_t slots = shared_address(shared.ring) + warp * kFewRowsStages * Weights::kSlotBytes;
  const uint32_t slots_end = slots + kFewRowsStages * Weights::kSlotBytes;

  Weights weights(lane);
  int ahead_tile = warp < chunks ? static_cast<int>(blockIdx.x) : tiles, ahead_chunk = warp;
  uint32_t filling = slots;
  if (ahead_tile < tiles) weights.enter(args, ahead_tile);
  const auto prefetch = [&] {
    if (ahead_tile < tiles) {
      weights.prefetch(args, filling, ahead_chunk);
      ahead_chunk += kFewRowsWarps;
      if (ahead_chunk >= chunks) {
        ahead_chunk = warp;
        ahead_tile += gridDim.x;
        if (ahead_tile < tiles) weights.enter(args, ahead_tile);
      }
    }
    commit_copies();
    filling = filling + Weights::kSlotBytes == slots_end ? slots : filling + Weights::kSlotBytes;
  };
  constexpr int kEarly = stages_before_x<Weights>();
#pragma unroll 1
  for (int s = 0; s < kEarly; ++s) prefetch();
  weights.load_scales(args, blockIdx.x);
  weights.load_norm(args);
  wait_for_previous();  // until here only weights were read
  if constexpr (kEarly < kFewRowsStages - 1) {
    weights.prepare(args, shared, chunks * Weights::kChunk, [&] {
#pragma unroll 1
      for (int s = kEarly; s < kFewRowsStages - 1; ++s) prefetch();
    });
  } else {
    weights.prepare(args, shared, chunks * Weights::kChunk);
  }
  __syncthreads();
  weights.store_scales(args, shared, blockIdx.x, 0);
  __syncthreads();

  const auto* x_row = shared.x + min(lane / 4, args.m - 1) * args.x_stride;
  uint32_t reading = slots;
  int half = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int next_tile = tile + static_cast<int>(gridDim.x);
    weights.begin();
    if (next_tile < tiles) weights.load_scales(args, next_tile);
    for (int chunk = warp; chunk < chunks; chunk += kFewRowsWarps) {
      wait_copies<kFewRowsStages - 2>();
      __syncwarp();
      weights.multiply(args, shared, reading, x_row, chunk, half);
      reading = reading + Weights::kSlotBytes == slots_end ? slots : reading + Weights::kSlotBytes;
      prefetch();  // into the slot that the iteration before has read
    }
    auto* own = shared.sums + (half * kFewRowsWarps + warp) * kFewRowsSums;
#pragma unroll
    for (int i = 0; i < 4; ++i) own[i * 32 + lane] = weights.sum(i);
    weights.end(args, shared, tile, half);
    if (next_tile < tiles) weights.store_scales(args, shared, next_tile, half ^ 1);
    __syncthreads();
    if (warp < 4)
      finish_tile(args, weights, shared, shared.sums + half * kFewRowsWarps * kFewRowsSums, tile, half, warp, lane);
    half ^= 1;
  }
#endif
}

/// x rounded to T, dense rows to rows of `x_stride`, zeros up to `padded` columns. Four loads are under way at a time;
/// aligned rows of a multiple of four take four values a load.
template <typename T>
__device__ __forceinline__ void stage_rounded(const FewRowsArgs& args, T* x, int padded) {
  constexpr int kLoads = 4;
  constexpr int threads = kFewRowsWarps * 32;
  const int quads = padded / 4;
  const bool is_aligned = args.cols % 4 == 0 && reinterpret_cast<uint64_t>(args.x.data) % 16 == 0;
  for (int i = 0; i < args.m; ++i) {
    const int64_t row = int64_t{i} * args.cols;
    for (int first = threadIdx.x; first < quads; first += kLoads * threads) {
      float4 values[kLoads];
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        const int c = (first + j * threads) * 4;
        values[j] = make_float4(0, 0, 0, 0);
        if (is_aligned && c < args.cols) {
          values[j] = args.x.four_at(row + c);
        } else {
          if (c < args.cols) values[j].x = args.x[row + c];
          if (c + 1 < args.cols) values[j].y = args.x[row + c + 1];
          if (c + 2 < args.cols) values[j].z = args.x[row + c + 2];
          if (c + 3 < args.cols) values[j].w = args.x[row + c + 3];
        }
      }
#pragma unroll
      for (int j = 0; j < kLoads; ++j) {
        const int c = (first + j * threads) * 4;
        if (c >= padded) continue;
        const T rounded[4] = {from_float<T>(values[j].x), from_float<T>(values[j].y), from_float<T>(values[j].z),
                              from_float<T>(values[j].w)};
        *reinterpret_cast<uint2*>(x + i * args.x_stride + c) = *reinterpret_cast<const uint2*>(rounded);
      }
    }
  }
}

}  // namespace nibble::kernels::cuda
