// What the copy engine brings to pairs of blocks that share x: each block's codes, and half of x to both.
#pragma once

#include "kernels/cuda/device/tile_4bit.cuh"

namespace nibble::kernels::cuda {

__device__ __forceinline__ uint32_t rank_in_pair() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ __forceinline__ void pair_waits() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// At the same place in block `rank` of the pair. Of the scope of a block: the pair's would fence all memory.
__device__ __forceinline__ void barrier_arrive_at(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 at;\nmapa.shared::cluster.u32 at, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [at];\n}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

/// To the same place in both blocks; the barrier of each counts the bytes.
__device__ __forceinline__ void copy_box_to_pair(uint32_t to, const CUtensorMap& map, int column, int row,
                                                 uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, "
      "{%2, %3}], [%4], %5;" ::"r"(to),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(column), "r"(row), "r"(barrier), "h"(uint16_t{3})
      : "memory");
}

/// Walks the line of tiles in steps of 64 columns, for a thread that brings something of each; what stays the same
/// within a tile is worked out once.
template <typename Shape>
class PairCursor {
 public:
  int left;      // steps
  int step;      // of the tile
  int x_row;     // of this block's half
  int code_row;  // of this block's rows
  const CUtensorMap* codes;

  __device__ PairCursor(const Tile4BitArgs& args, int pair, int pairs, int rank) : args_(args), rank_(rank) {
    const TileRange range(args.tile, pair, pairs);
    const int tile = static_cast<int>(range.at / args.tile.chunks);
    left = 2 * static_cast<int>(range.end - range.at);
    step = 2 * static_cast<int>(range.at - int64_t{tile} * args.tile.chunks);
    row_tile_ = tile / args.tile.column_tiles;
    column_tile_ = tile - row_tile_ * args.tile.column_tiles;
    if (left > 0) enter();
  }

  __device__ __forceinline__ void advance() {
    if (++step < 2 * args_.tile.chunks) return;
    step = 0;
    if (++column_tile_ == args_.tile.column_tiles) column_tile_ = 0, ++row_tile_;
    if (left > 1) enter();
  }

 private:
  __device__ __forceinline__ void enter() {
    const DeviceJob& job = args_.tile.jobs.of_tile(row_tile_);
    codes = args_.codes + (&job - args_.tile.jobs.jobs);
    code_row = (row_tile_ - job.first_tile) * Shape::rows + rank_ * 128;
    x_row = column_tile_ * Shape::columns + rank_ * (Shape::columns / 2);
  }

  const Tile4BitArgs& args_;
  int rank_, row_tile_, column_tile_;
};

/// One thread brings the block's codes, 64 columns a stage: the first stages' at once, the rest as they become free.
template <typename Shape>
__device__ __forceinline__ void bring_codes(PairCursor<Shape>& at, uint32_t shared, bool is_start) {
  const uint32_t full = shared + Shape::kBarriers, empty = full + 8 * Shape::kStages;
  int stage = 0;
  uint32_t parity = 1;
  for (int i = 0; at.left > 0; --at.left, ++i) {
    if (is_start ? i < Shape::kStages : i >= Shape::kStages) {
      barrier_wait(empty + 8 * stage, parity);
      barrier_expect(full + 8 * stage, Shape::kCodeBytes);
      copy_box(shared + Shape::kStage + stage * Shape::kStageBytes + Shape::kXBytes, *at.codes, at.step * 32,
               at.code_row, full + 8 * stage);
    } else if (is_start) {
      return;
    }
    at.advance();
    if (++stage == Shape::kStages) stage = 0, parity ^= 1;
  }
}

/// One thread brings this block's half of x to both blocks.
template <typename Shape>
__device__ __forceinline__ void bring_x(const Tile4BitArgs& args, PairCursor<Shape>& at, uint32_t shared, int rank) {
  const uint32_t full = shared + Shape::kBarriers, empty = full + 8 * Shape::kStages;
  int stage = 0;
  uint32_t parity = 1;
  wait_for_previous_launch();
  for (; at.left > 0; --at.left) {
    barrier_wait(empty + 8 * stage, parity);
    barrier_expect(full + 8 * stage, Shape::kXBytes);
    copy_box_to_pair(shared + Shape::kStage + stage * Shape::kStageBytes + rank * (Shape::kXBytes / 2), args.x,
                     at.step * 128, at.x_row, full + 8 * stage);
    at.advance();
    if (++stage == Shape::kStages) stage = 0, parity ^= 1;
  }
}

}  // namespace nibble::kernels::cuda
