// LLM.int8() for many rows of x: 128 of them by kRows weight rows a tile, both sides brought to shared memory by the
// copy engine; integer products first, then, in the same registers, those of the outlier columns.
#pragma once

#include <cuda.h>

#include "kernels/cuda/device/async.cuh"
#include "kernels/cuda/device/int8_panels.cuh"
#include "kernels/cuda/device/int8_store.cuh"
#include "kernels/cuda/device/wgmma.cuh"
#include "kernels/cuda/device/wgmma_shared.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kInt8TileX = 128;  // rows of x a tile

struct Int8TileArgs {
  CUtensorMap codes, panels_x, panels_w;  // the panels with a threshold only
  CUtensorMap direct_x;                   // (m, 2 * cols) bytes, where x may stand for its panels
  CUtensorMap weights[kMaxJobs];
  DeviceJobs jobs;
  Int8Left left;
  int m, chunks, column_tiles;
  int panel_rows;               // of the weights' panels: of all jobs
  int job_panel_row[kMaxJobs];  // where a job's stand
};

template <int kRows>
struct Int8TileShared {
  static constexpr int kXBytes = kInt8TileX * 128;
  static constexpr int kStageBytes = kXBytes + kRows * 128;
  static constexpr int kStages = 212 * 1024 / kStageBytes < 8 ? 212 * 1024 / kStageBytes : 8;
  static constexpr int kBarriers = kStages * kStageBytes;
  static constexpr int kAbsmax = kBarriers + 2 * kStages * 8;    // of two tiles, for each warp group
  static constexpr int kBytes = kAbsmax + 4 * kRows * 4 + 1024;  // its start is moved to a multiple of 1024
  static_assert(kBytes <= 232448);
};

/// Where in the ring of stages a thread is.
template <int kStages>
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

struct Int8Steps {
  int chunks, panels = 0;
  bool has_list = false, has_direct_x = false, has_large_x = false;

  __device__ explicit Int8Steps(const Int8TileArgs& args) : chunks(args.chunks) {
    if (!args.left.summary) return;
    const OutlierSummary summary = *args.left.summary;
    panels = summary.panels;
    has_direct_x = summary.has_direct_x;
    has_large_x = summary.has_large_x;
    has_list = summary.live_chunks >= 0;
    if (has_list) chunks = summary.live_chunks;
  }
};

/// One thread brings both sides of every step.
template <int kRows>
__device__ __forceinline__ void produce_tiles(const Int8TileArgs& args, uint32_t shared) {
  using Shared = Int8TileShared<kRows>;
  const uint32_t full = shared + Shared::kBarriers, empty = full + 8 * Shared::kStages;
  RingPlace<Shared::kStages> place{0, 1};
  const Int8Steps steps(args);
  const int tiles = args.jobs.tiles * args.column_tiles;
  const auto bring = [&](const CUtensorMap& x, int x_column, int x_row, const CUtensorMap& w, int w_column, int w_row) {
    barrier_wait(empty + 8 * place.stage, place.parity);
    const uint32_t barrier = full + 8 * place.stage, to = shared + place.stage * Shared::kStageBytes;
    barrier_expect(barrier, Shared::kStageBytes);
    copy_box(to, x, x_column, x_row, barrier);
    copy_box(to + Shared::kXBytes, w, w_column, w_row, barrier);
    place.advance();
  };
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int row_tile = tile / args.column_tiles, x_row = tile % args.column_tiles * kInt8TileX;
    const DeviceJob& job = args.jobs.of_tile(row_tile);
    const auto j = &job - args.jobs.jobs;
    const int w_row = (row_tile - job.first_tile) * kRows;
    for (int i = 0; i < steps.chunks; ++i) {
      const int column = (steps.has_list ? args.left.live_chunks[i] : i) * kInt8Chunk;
      bring(args.codes, column, x_row, args.weights[j], column, w_row);
    }
    for (int p = 0; p < steps.panels; ++p) {
      const int panel_row = p * args.panel_rows + args.job_panel_row[j] + w_row;
      if (steps.has_direct_x)
        bring(args.direct_x, p * 128, x_row, args.panels_w, 0, panel_row);
      else
        bring(args.panels_x, 0, p * args.m + x_row, args.panels_w, 0, panel_row);
    }
  }
}

/// `steps` stages' products added to sums.
template <typename X, int kRows, typename Acc, int kCount, int kStages>
__device__ __forceinline__ void multiply_stages(Acc (&sums)[kCount], int steps, uint32_t shared, int group,
                                                RingPlace<kStages>& place) {
  using Shared = Int8TileShared<kRows>;
  const uint32_t full = shared + Shared::kBarriers, empty = full + 8 * Shared::kStages;
  uint32_t to_release = 0;
  for (int i = 0; i < steps; ++i) {
    barrier_wait(full + 8 * place.stage, place.parity);
    const uint32_t from = shared + place.stage * Shared::kStageBytes;
    const uint64_t x = swizzled_operand(from + group * 64 * 128), w = swizzled_operand(from + Shared::kXBytes);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) SharedWgmma<X, kRows>::multiply(sums, x + 2 * k, w + 2 * k);
    wgmma_commit();
    wgmma_wait<1>();  // the stage before is free
    if (to_release && threadIdx.x % 32 == 0) barrier_arrive(to_release);
    to_release = empty + 8 * place.stage;
    place.advance();
  }
  wgmma_wait<0>();
  if (to_release && threadIdx.x % 32 == 0) barrier_arrive(to_release);
}

/// The absmax of a tile's weight rows: on their way while its products run, then for the whole warp group.
template <int kRows>
class Int8Absmax {
 public:
  __device__ explicit Int8Absmax(uint8_t* memory)
      : room_(reinterpret_cast<float*>(memory + Int8TileShared<kRows>::kAbsmax) + threadIdx.x / 128 * 2 * kRows) {}

  __device__ __forceinline__ void fetch(const DeviceJob& job, int first) {
#pragma unroll
    for (int k = 0; k < kEach; ++k)
      own_[k] =
          __ldg(job.weight.absmax.values + min(first + static_cast<int>(threadIdx.x) % 128 + k * 128, job.rows - 1));
  }
  /// The two halves of the room take turns: who still reads the one is a barrier ahead of who writes it again.
  __device__ __forceinline__ const float* share() {
    float* half = room_ + turn_ * kRows;
    turn_ ^= 1;
    const int thread = threadIdx.x % 128;
#pragma unroll
    for (int k = 0; k < kEach; ++k)
      if (thread + k * 128 < kRows) half[thread + k * 128] = own_[k];
    asm volatile("bar.sync %0, 128;" ::"r"(1 + static_cast<int>(threadIdx.x) / 128) : "memory");
    return half;
  }

 private:
  static constexpr int kEach = (kRows + 127) / 128;
  float* room_;
  float own_[kEach];
  int turn_ = 0;
};

/// Two warp groups, 64 rows of x each.
template <typename T, int kRows>
__device__ __forceinline__ void consume_tiles(const Int8TileArgs& args, uint8_t* memory) {
  constexpr int kCount = kRows / 2;
  const uint32_t shared = shared_address(memory);
  RingPlace<Int8TileShared<kRows>::kStages> place;
  Int8Absmax<kRows> absmax(memory);
  const Int8Steps steps(args);
  const int tiles = args.jobs.tiles * args.column_tiles, group = threadIdx.x / 128, lane = threadIdx.x % 32;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int row_tile = tile / args.column_tiles;
    const DeviceJob& job = args.jobs.of_tile(row_tile);
    const int n = (row_tile - job.first_tile) * kRows;
    const int i = tile % args.column_tiles * kInt8TileX + threadIdx.x / 32 * 16 + lane / 4;
    absmax.fetch(job, n);
    const float x_scales[2] = {args.left.scales[min(i, args.m - 1)] * (1.0f / (127.0f * 127.0f)),
                               args.left.scales[min(i + 8, args.m - 1)] * (1.0f / (127.0f * 127.0f))};
    int integers[kCount];
#pragma unroll
    for (int& sum : integers) sum = 0;
    multiply_stages<int8_t, kRows>(integers, steps.chunks, shared, group, place);

    const float* scales = absmax.share() + 2 * (lane % 4);
    float sums[kCount];
#pragma unroll
    for (int j = 0; j < kCount / 4; ++j) {
      const float2 pair = *reinterpret_cast<const float2*>(scales + 8 * j);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        sums[4 * j + 2 * half] = static_cast<float>(integers[4 * j + 2 * half]) * (x_scales[half] * pair.x);
        sums[4 * j + 2 * half + 1] = static_cast<float>(integers[4 * j + 2 * half + 1]) * (x_scales[half] * pair.y);
      }
    }
    if (steps.panels > 0) {
      if (__is_same(T, __half) && steps.has_large_x)
        multiply_stages<__nv_bfloat16, kRows>(sums, steps.panels, shared, group, place);
      else
        multiply_stages<T, kRows>(sums, steps.panels, shared, group, place);
    }
    store_tile(job.out, args.m, job.rows, i, n, lane, sums);
  }
}

/// T: what outlier columns are rounded to.
template <typename T, int kRows>
__global__ void __launch_bounds__(384, 1) int8_tile_kernel(const __grid_constant__ Int8TileArgs args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Shared = Int8TileShared<kRows>;
  extern __shared__ __align__(16) uint8_t memory[];
  uint8_t* const aligned = memory + (1024 - shared_address(memory) % 1024) % 1024;
  const uint32_t shared = shared_address(aligned);
  const uint32_t full = shared + Shared::kBarriers, empty = full + 8 * Shared::kStages;
  if (threadIdx.x == 0) {
    for (int s = 0; s < Shared::kStages; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, 8);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  wait_for_previous();
  if (threadIdx.x >= 256) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 256) produce_tiles<kRows>(args, shared);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    consume_tiles<T, kRows>(args, aligned);
  }
#endif
}

}  // namespace nibble::kernels::cuda
