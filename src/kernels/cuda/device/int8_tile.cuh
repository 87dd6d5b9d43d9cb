// LLM.int8() for many rows of x: 128 of them by kRows weight rows a tile, both sides brought to shared memory by the
// copy engine; integer products first, then, in the same registers, those of the outlier columns.
#pragma once

#include <cuda.h>

#include "kernels/cuda/device/async.cuh"
#include "kernels/cuda/device/int8_left.cuh"
#include "kernels/cuda/device/wgmma.cuh"
#include "kernels/cuda/device/wgmma_shared.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kInt8TileX = 128;  // rows of x a tile

struct Int8TileArgs {
  CUtensorMap codes, panels_x, panels_w;  // the panels with a threshold only
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
  static constexpr int kBytes = kBarriers + 2 * kStages * 8 + 1024;  // its start is moved to a multiple of 1024
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
  int chunks, panels;
  bool has_list;

  __device__ explicit Int8Steps(const Int8TileArgs& args) : chunks(args.chunks), panels(0), has_list(false) {
    if (!args.left.summary) return;
    const OutlierSummary summary = *args.left.summary;
    panels = summary.panels;
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
    for (int p = 0; p < steps.panels; ++p)
      bring(args.panels_x, 0, p * args.m + x_row, args.panels_w, 0,
            p * args.panel_rows + args.job_panel_row[j] + w_row);
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

/// y[i, n] and y[i, n + 1].
template <typename Y>
__device__ __forceinline__ void store_pair(const MatmulOutput& out, int64_t i, int n, int rows, float2 sums,
                                           bool is_paired) {
  Y* y = static_cast<Y*>(out.y) + i * out.y_stride + n;
  if (n >= rows) return;
  if (out.bias) sums.x += out.bias[n];
  if (out.bias && n + 1 < rows) sums.y += out.bias[n + 1];
  if (!is_paired || n + 1 == rows) {
    put_at(y, sums.x, out.accumulate);
    if (n + 1 < rows) put_at(y + 1, sums.y, out.accumulate);
    return;
  }
  using Pair = std::conditional_t<sizeof(Y) == 4, float2, __nv_bfloat162>;
  Y both[2] = {};
  if (out.accumulate) *reinterpret_cast<Pair*>(both) = *reinterpret_cast<const Pair*>(y);
  put_at(both, sums.x, out.accumulate);
  put_at(both + 1, sums.y, out.accumulate);
  *reinterpret_cast<Pair*>(y) = *reinterpret_cast<const Pair*>(both);
}

template <typename Y, int kCount>
__device__ __forceinline__ void store_tile(const MatmulOutput& out, int m, int rows, int i, int n,
                                           const float (&sums)[kCount]) {
  const bool is_paired = out.y_stride % 2 == 0 && reinterpret_cast<uint64_t>(out.y) % (2 * sizeof(Y)) == 0;
#pragma unroll
  for (int j = 0; j < kCount / 4; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (i + 8 * half < m)
        store_pair<Y>(out, i + 8 * half, n + 8 * j, rows,
                      make_float2(sums[4 * j + 2 * half], sums[4 * j + 2 * half + 1]), is_paired);
}

/// Two warp groups, 64 rows of x each.
template <typename T, int kRows>
__device__ __forceinline__ void consume_tiles(const Int8TileArgs& args, uint32_t shared) {
  constexpr int kCount = kRows / 2;
  RingPlace<Int8TileShared<kRows>::kStages> place;
  const Int8Steps steps(args);
  const int tiles = args.jobs.tiles * args.column_tiles, group = threadIdx.x / 128, lane = threadIdx.x % 32;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    int integers[kCount];
#pragma unroll
    for (int& sum : integers) sum = 0;
    multiply_stages<int8_t, kRows>(integers, steps.chunks, shared, group, place);

    const int row_tile = tile / args.column_tiles;
    const DeviceJob& job = args.jobs.of_tile(row_tile);
    const int n = (row_tile - job.first_tile) * kRows + 2 * (lane % 4);
    const int i = tile % args.column_tiles * kInt8TileX + threadIdx.x / 32 * 16 + lane / 4;
    const float* absmax = job.weight.absmax.values;
    const float x_scales[2] = {args.left.scales[min(i, args.m - 1)], args.left.scales[min(i + 8, args.m - 1)]};
    float sums[kCount];
#pragma unroll
    for (int j = 0; j < kCount / 4; ++j)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float w_scale = absmax[min(n + 8 * j + c, job.rows - 1)];
#pragma unroll
        for (int half = 0; half < 2; ++half)
          sums[4 * j + 2 * half + c] = static_cast<float>(integers[4 * j + 2 * half + c]) *
                                       (x_scales[half] * w_scale * (1.0f / (127.0f * 127.0f)));
      }
    if (steps.panels > 0) multiply_stages<T, kRows>(sums, steps.panels, shared, group, place);
    if (job.out.y_dtype == DType::bf16)
      store_tile<__nv_bfloat16>(job.out, args.m, job.rows, i, n, sums);
    else
      store_tile<float>(job.out, args.m, job.rows, i, n, sums);
  }
}

/// T: what outlier columns are rounded to.
template <typename T, int kRows>
__global__ void __launch_bounds__(384, 1) int8_tile_kernel(const __grid_constant__ Int8TileArgs args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Shared = Int8TileShared<kRows>;
  extern __shared__ __align__(16) uint8_t memory[];
  const uint32_t shared = (shared_address(memory) + 1023) / 1024 * 1024;
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
    consume_tiles<T, kRows>(args, shared);
  }
#endif
}

}  // namespace nibble::kernels::cuda
