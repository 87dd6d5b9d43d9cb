// Tiles that are cut in pieces of equal depth, a block each: every block leaves its sums, and adds and stores a share
// of the tile's columns, so that all of them finish the tile together.
#pragma once

#include "kernels/cuda/device/walk_4bit.cuh"

namespace nibble::kernels::cuda {

/// The blocks of a tile, in the order of their pieces: rank is this one's, `block` its number, `stride` from one to the
/// next. They wait for each other: blocks start in their order, so that of each launch at most one tile has some of its
/// blocks waiting and others not started. All find a place while few streams do so at once, on a whole H100 eight.
struct CutTile {
  int block, rank, stride;

  __device__ int other(int cut) const { return block + (cut - rank) * stride; }
};

/// Leaves a thread's sums, and waits until the same warp of the tile's other blocks has left them.
template <int kCuts, int kThreads, int kCount>
__device__ __forceinline__ void leave_cut(const TileArgs& line, const CutTile& tile, const float (&sums)[kCount]) {
  constexpr int kWarps = kThreads / 32;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  float4* to = reinterpret_cast<float4*>(line.partials) + int64_t{tile.block} * (kCount / 4 * kThreads) + thread;
#pragma unroll
  for (int j = 0; j < kCount / 4; ++j)
    __stcg(to + j * kThreads, make_float4(sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]));
  __syncwarp();
  if (lane < kCuts && lane != tile.rank)  // releases what the warp's barrier has shown it too
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(line.flags + tile.other(lane) * kWarps + warp),
                 "r"(1u)
                 : "memory");
  uint32_t* flag = line.flags + tile.block * kWarps + warp;
  while (load_acquire(flag) != kCuts - 1) {
  }
  __syncwarp();
  if (lane == 0) *flag = 0;
}

/// How many of a share's fours of sums are under way from all blocks at once.
constexpr int fours_at_once(int cuts, int own) {
  int fours = 24 / cuts < own ? 24 / cuts : own;
  while (own % fours != 0) --fours;
  return fours;
}

/// y[i, n] of this block's share of the tile: weight rows n and 8 on, every eighth pair of rows of x from i on. Always
/// added up in the order of the pieces.
template <typename Y, int kCuts, int kThreads, int kCount>
__device__ __forceinline__ void store_cut(const TileArgs& line, const CutTile& tile, const DeviceJob& job, int n,
                                          int i) {
  constexpr int kOwn = kCount / 4 / kCuts, kAtOnce = fours_at_once(kCuts, kOwn);
  static_assert(kOwn * kCuts * 4 == kCount);
  const auto* left = reinterpret_cast<const float4*>(line.partials) + threadIdx.x + tile.rank * (kOwn * kThreads);
  float bias[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) bias[h] = job.out.bias ? job.out.bias[min(n + 8 * h, job.rows - 1)] : 0.0f;
  i += tile.rank * (8 * kOwn);
#pragma unroll 1
  for (int first = 0; first < kOwn; first += kAtOnce) {
    float4 pieces[kCuts][kAtOnce];
#pragma unroll
    for (int c = 0; c < kCuts; ++c)
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        pieces[c][j] = __ldcg(left + int64_t{tile.other(c)} * (kCount / 4 * kThreads) + (first + j) * kThreads);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      float4 sum = pieces[0][j];
#pragma unroll
      for (int c = 1; c < kCuts; ++c)
        sum.x += pieces[c][j].x, sum.y += pieces[c][j].y, sum.z += pieces[c][j].z, sum.w += pieces[c][j].w;
      const float sums[4] = {sum.x, sum.y, sum.z, sum.w};
      const int column = i + 8 * (first + j);
      Y* y = static_cast<Y*>(job.out.y) + int64_t{column} * job.out.y_stride + n;
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (column + e % 2 < line.m && n + e / 2 * 8 < job.rows)
          put_at(y + e % 2 * job.out.y_stride + e / 2 * 8, sums[e] + bias[e / 2], job.out.accumulate);
    }
  }
}

template <int kCuts, int kThreads, int kCount>
__device__ __forceinline__ void finish_cuts(const TileArgs& line, const CutTile& tile, const DeviceJob& job, int n,
                                            int i, const float (&sums)[kCount]) {
  leave_cut<kCuts, kThreads>(line, tile, sums);
  if (job.out.y_dtype == DType::bf16)
    store_cut<__nv_bfloat16, kCuts, kThreads, kCount>(line, tile, job, n, i);
  else
    store_cut<float, kCuts, kThreads, kCount>(line, tile, job, n, i);
}

/// args.cuts: 4 or 8. n, i: a thread's first rows of the weight and of x.
template <int kThreads, int kCount>
__device__ __forceinline__ void finish_cut_tile(const Tile4BitArgs& args, const CutTile& tile, const DeviceJob& job,
                                                int n, int i, const float (&sums)[kCount]) {
  if (args.cuts == 4)
    finish_cuts<4, kThreads>(args.tile, tile, job, n, i, sums);
  else
    finish_cuts<8, kThreads>(args.tile, tile, job, n, i, sums);
}

}  // namespace nibble::kernels::cuda
