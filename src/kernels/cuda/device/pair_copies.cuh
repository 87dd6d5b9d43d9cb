// What the copy engine brings to pairs of blocks that share x: each block's codes, and half of x to both.
#pragma once

#include "kernels/cuda/device/pair_store.cuh"

namespace nibble::kernels::cuda {

__device__ __forceinline__ uint32_t rank_in_pair() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

/// All threads of both blocks, each warp as one; pair_is_there() returns when they have.
__device__ __forceinline__ void pair_arrives() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void pair_is_there() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

__device__ __forceinline__ void pair_waits() {
  pair_arrives();
  pair_is_there();
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

/// `size_bytes` to the same place in both blocks; the barrier of each counts them.
__device__ __forceinline__ void copy_bulk_to_pair(uint32_t to, const void* from, uint32_t size_bytes,
                                                  uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], "
      "%4;" ::"r"(to),
      "l"(from), "r"(size_bytes), "r"(barrier), "h"(uint16_t{3})
      : "memory");
}

/// One thread brings the block's codes, 64 columns a stage.
template <typename Shape>
__device__ __forceinline__ void bring_codes(TileWalk<Shape>& at, uint32_t shared) {
  const uint32_t full = shared + Shape::kBarriers, empty = full + 8 * Shape::kStages;
  int stage = 0;
  uint32_t parity = 1;
  while (at.left > 0) {
    barrier_wait(empty + 8 * stage, parity);
    barrier_expect(full + 8 * stage, Shape::kCodeBytes);
    copy_box(shared + Shape::kStage + stage * Shape::kStageBytes + Shape::kXBytes, *at.codes, at.step * 32, at.code_row,
             full + 8 * stage);
    at.advance();
    if (++stage == Shape::kStages) stage = 0, parity ^= 1;
  }
}

/// One thread brings this block's half of x to both blocks; then, by the same ring, what later pairs left of the last
/// tile, unless it begins with that.
template <typename Shape>
__device__ __forceinline__ void bring_x(const Tile4BitArgs& args, uint32_t shared, int pair, int pairs, int rank) {
  const uint32_t full = shared + Shape::kBarriers, empty = full + 8 * Shape::kStages;
  const TileShare share = share_of<Shape>(args, pair, pairs);
  TileWalk<Shape> at(args, share, rank);
  int stage = 0;
  uint32_t parity = 1;
  const auto advance = [&] {
    if (++stage == Shape::kStages) stage = 0, parity ^= 1;
  };
  wait_for_previous_launch();
  while (at.left > 0) {
    barrier_wait(empty + 8 * stage, parity);
    barrier_expect(full + 8 * stage, Shape::kXBytes);
    copy_box_to_pair(shared + Shape::kStage + stage * Shape::kStageBytes + rank * (Shape::kXBytes / 2), args.x,
                     at.step * 128, at.x_row, full + 8 * stage);
    at.advance();
    advance();
  }
  if (Shape::is_cut || begins_with_left(args, share, pair, pairs)) return;
  for_left_pieces(args, share, pair, pairs, [&](int next) {
#pragma unroll 1
    for (int part = 0; part < PairPiece<Shape>::kParts; ++part) {
      const PairPiece<Shape> piece(args.tile, next, rank, part / 2);
      if (part % 2 == 0) piece.wait();
      barrier_wait(empty + 8 * stage, parity);
      barrier_arrive(full + 8 * stage);  // for the codes
      barrier_expect(full + 8 * stage, PairPiece<Shape>::kPartBytes);
      copy_bulk(shared + Shape::kStage + stage * Shape::kStageBytes, piece.part(part % 2), PairPiece<Shape>::kPartBytes,
                full + 8 * stage);
      advance();
    }
  });
}

}  // namespace nibble::kernels::cuda
