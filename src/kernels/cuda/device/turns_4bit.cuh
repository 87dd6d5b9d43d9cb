// 4-bit products of very many rows of x on Hopper, as ahead_4bit.cuh, in smaller tiles at which the two warp groups of
// a block take turns: while one multiplies, the other stores. A pair of blocks takes 256 rows of x, 128 each, by 168
// weight rows, of which each brings half to both: 11008 rows of weights by 2048 of x are whole rounds of 66 pairs.
#pragma once

#include "kernels/cuda/device/ahead_decode.cuh"
#include "kernels/cuda/device/pair_copies.cuh"
#include "kernels/cuda/device/turns_store.cuh"
#include "kernels/cuda/device/wgmma.cuh"
#include "kernels/cuda/device/wgmma_shared.cuh"

namespace nibble::kernels::cuda {

/// One thread brings this block's x and half of the weights of both.
__device__ __forceinline__ void bring_turns(const AheadArgs& args, uint32_t shared, int pair, int pairs, int rank) {
  using Tile = TurnsTile;
  const uint32_t full = shared + Tile::kBarriers, empty = full + 8 * Tile::kStages;
  int stage = 0;
  uint32_t parity = 1;
  for (int tile = pair; tile < args.tiles; tile += pairs) {
    const int row_tile = tile / args.column_tiles;
    const int x_row = (tile - row_tile * args.column_tiles) * 256 + rank * 128;
    const uint8_t* panel = args.panel_of(row_tile) + rank * Tile::kHalfBytes;
    const uint32_t* ready = args.ready_of(row_tile);
    for (int chunk = 0; chunk < args.chunks; ++chunk) {
      if (chunk % 4 == 0) {
        while (load_acquire(ready + chunk / 4) != static_cast<uint32_t>(Tile::kUnits)) {
        }
        asm volatile("fence.proxy.async.global;" ::: "memory");
      }
      barrier_wait(empty + 8 * stage, parity);
      const uint32_t to = shared + stage * Tile::kStageBytes, barrier = full + 8 * stage;
      barrier_expect(barrier, Tile::kStageBytes);
      copy_box(to, args.x, chunk * 128, x_row, barrier);
      copy_bulk_to_pair(to + Tile::kXBytes + rank * Tile::kHalfBytes, panel + int64_t{chunk} * Tile::kChunkBytes,
                        Tile::kHalfBytes, barrier);
      if (++stage == Tile::kStages) stage = 0, parity ^= 1;
    }
  }
}

/// Named barriers at which the warp groups of a block hand over: to multiply, and to use the room for results.
__device__ __forceinline__ void hand_over(int barrier) {
  asm volatile("bar.arrive %0, 256;" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void take_over(int barrier) { asm volatile("bar.sync %0, 256;" ::"r"(barrier) : "memory"); }

/// The products of one tile; `chunk` counts all chunks of the block's tiles before it.
template <typename T>
__device__ __forceinline__ void multiply_turn(const AheadArgs& args, uint32_t shared, uint32_t chunk, bool is_last,
                                              TurnSums& sums) {
  using Tile = TurnsTile;
  const uint32_t full = shared + Tile::kBarriers, empty = full + 8 * Tile::kStages;
  const int lane = threadIdx.x % 32;
  uint32_t stage = chunk % Tile::kStages, parity = chunk / Tile::kStages % 2, to_release = 0;
  const auto release = [&] {
    if (to_release && lane < 2) barrier_arrive_at(to_release, static_cast<uint32_t>(lane));
  };
#pragma unroll 1
  for (int left = args.chunks; left > 0; --left) {
    barrier_wait(full + 8 * stage, parity);
    const uint32_t from = shared + stage * Tile::kStageBytes;
    const uint64_t x = swizzled_operand(from), w = swizzled_operand(from + Tile::kXBytes);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      SharedWgmma<T, Tile::kRows>::multiply(sums[0], x + 2 * k, w + 2 * k);
      SharedWgmma<T, Tile::kRows>::multiply(sums[1], x + 64 * 128 / 16 + 2 * k, w + 2 * k);
    }
    wgmma_commit();
    wgmma_wait<1>();  // the stage before is free
    release();
    to_release = empty + 8 * stage;
    if (++stage == Tile::kStages) stage = 0, parity ^= 1;
  }
  if (!is_last) hand_over(5 - threadIdx.x / 128);
  wgmma_wait<0>();
  release();
}

/// Every second tile of a pair, for a warp group.
template <typename T>
__device__ __forceinline__ void consume_turns(const AheadArgs& args, uint32_t shared, int pair, int pairs, int rank) {
  const int group = threadIdx.x / 128, lane = threadIdx.x % 32;
  uint32_t turn = group;
  for (int tile = pair + group * pairs; tile < args.tiles; tile += 2 * pairs, turn += 2) {
    TurnSums sums;
#pragma unroll
    for (auto& half : sums)
#pragma unroll
      for (float& sum : half) sum = 0;
    const bool is_last = tile + pairs >= args.tiles;
    if (turn > 0) take_over(4 + group);
    multiply_turn<T>(args, shared, turn * static_cast<uint32_t>(args.chunks), is_last, sums);
    const int row_tile = tile / args.column_tiles;
    if (threadIdx.x % 128 == 0) args.tell_read(row_tile, args.chunks);
    const DeviceJob& job = args.jobs.of_tile(row_tile);
    const auto j = &job - args.jobs.jobs;
    const int n = (row_tile - job.first_tile) * TurnsTile::kRows;
    const int i = (tile - row_tile * args.column_tiles) * 256 + rank * 128;
    if (job.out.bias) add_bias(job.out.bias, job.rows, n + 2 * (lane % 4), sums);
    if (turn > 0) take_over(6 + group);
    store_turn(args.out[j], n, i, sums, shared + TurnsTile::kResult);
    if (!is_last) hand_over(7 - group);
  }
}

/// All blocks at once, in clusters of two: they wait for each other's weights. Blocks of 64 or more, a power of two;
/// cols a multiple of 64.
template <typename T>
__global__ void __launch_bounds__(kAheadThreads, 1) turns_4bit_kernel(const __grid_constant__ AheadArgs args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Tile = TurnsTile;
  extern __shared__ __align__(1024) uint8_t turns_memory[];
  const uint32_t shared = shared_address(turns_memory);
  const int rank = static_cast<int>(rank_in_pair());
  const int pairs = static_cast<int>(gridDim.x / 2), pair = static_cast<int>(blockIdx.x / 2);
  start_ahead<Tile>(args, turns_memory, 8);  // the warps of a group, of both blocks
  if (threadIdx.x >= 256) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 104;");
    serve_ahead<T, Tile>(args, turns_memory, [&] { bring_turns(args, shared, pair, pairs, rank); });
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 200;");
    consume_turns<T>(args, shared, pair, pairs, rank);
  }
  __syncwarp();
  pair_waits();  // until then the other block may still reach into this one
#endif
}

}  // namespace nibble::kernels::cuda
