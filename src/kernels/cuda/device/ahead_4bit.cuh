// 4-bit products of very many rows of x on Hopper, in one launch: warps that the tensor cores leave idle decode weights
// to memory ahead of the products that want them. Blocks work in pairs on 256 rows of x, 128 each, and share 256 weight
// rows, of which each brings half to both.
#pragma once

#include "kernels/cuda/device/ahead_decode.cuh"
#include "kernels/cuda/device/ahead_store.cuh"
#include "kernels/cuda/device/pair_copies.cuh"
#include "kernels/cuda/device/wgmma.cuh"
#include "kernels/cuda/device/wgmma_shared.cuh"

namespace nibble::kernels::cuda {

/// A part of a tile: chunks [first, last) of 64 columns.
struct AheadPiece {
  int tile, first, last;
};

/// What a pair works on: every pairs-th of the first tiles, then an even share of the chunks of the rest.
class AheadWalk {
 public:
  __device__ AheadWalk(const AheadArgs& args, int pair, int pairs) : args_(args), pairs_(pairs), tile_(pair) {
    at_ = share_begin(args, pair, pairs);
    end_ = share_begin(args, pair + 1, pairs);
  }

  __device__ __forceinline__ bool next(AheadPiece& piece) {
    if (tile_ < args_.whole_tiles) {
      piece = {tile_, 0, args_.chunks};
      tile_ += pairs_;
      return true;
    }
    if (at_ >= end_) return false;
    const int tile = at_ / args_.chunks, begin = tile * args_.chunks;
    piece = {args_.whole_tiles + tile, at_ - begin, min(end_ - begin, args_.chunks)};
    at_ = begin + piece.last;
    return true;
  }

  /// The pairs that leave the rest of a tile of which `pair` has the first `last` chunks, in their order.
  template <typename Visit>
  __device__ static __forceinline__ void for_rest(const AheadArgs& args, const AheadPiece& piece, int pair, int pairs,
                                                  const Visit& visit) {
    const int end = (piece.tile - args.whole_tiles + 1) * args.chunks;
    for (int next = pair + 1, at = end - args.chunks + piece.last; at < end; ++next) {
      visit(next);
      at = share_begin(args, next + 1, pairs);
    }
  }

 private:
  /// Each tile counts some chunks more at its begin, for who stores it.
  __device__ static __forceinline__ int share_begin(const AheadArgs& args, int pair, int pairs) {
    constexpr uint32_t kExtra = 3;
    const uint32_t tile = static_cast<uint32_t>(args.chunks) + kExtra;
    const uint32_t all = static_cast<uint32_t>(args.tiles - args.whole_tiles) * tile;
    const uint32_t each = all / static_cast<uint32_t>(pairs), rest = all - each * static_cast<uint32_t>(pairs);
    const uint32_t place = static_cast<uint32_t>(pair) * each + min(static_cast<uint32_t>(pair), rest);
    const uint32_t t = place / tile;
    return static_cast<int>(t) * args.chunks + max(static_cast<int>(place - t * tile) - static_cast<int>(kExtra), 0);
  }

  const AheadArgs& args_;
  int pairs_, tile_, at_, end_;
};

/// One thread brings this block's x and half of the weights of both.
__device__ __forceinline__ void bring_ahead(const AheadArgs& args, uint32_t shared, int pair, int pairs, int rank) {
  using Tile = AheadTile;
  const uint32_t full = shared + Tile::kBarriers, empty = full + 8 * Tile::kStages;
  AheadWalk walk(args, pair, pairs);
  AheadPiece piece;
  int stage = 0;
  uint32_t parity = 1;
  while (walk.next(piece)) {
    const int row_tile = piece.tile / args.column_tiles;
    const int x_row = (piece.tile - row_tile * args.column_tiles) * 256 + rank * 128;
    const uint8_t* panel = args.panel_of(row_tile) + rank * Tile::kHalfBytes;
    const uint32_t* ready = args.ready_of(row_tile);
    for (int chunk = piece.first; chunk < piece.last; ++chunk) {
      if (chunk == piece.first || chunk % 4 == 0) {
        while (load_acquire(ready + chunk / 4) != static_cast<uint32_t>(Tile::kUnits)) {
        }
        asm volatile("fence.proxy.async.global;" ::: "memory");
      }
      barrier_wait(empty + 8 * stage, parity);
      const uint32_t to = shared + stage * Tile::kStageBytes, barrier = full + 8 * stage;
      barrier_expect(barrier, Tile::kStageBytes);
      copy_box(to, args.x, chunk * 128, x_row, barrier);
      copy_bulk_to_pair(to + Tile::kXBytes + rank * Tile::kHalfBytes, panel + int64_t{chunk} * 2 * Tile::kHalfBytes,
                        Tile::kHalfBytes, barrier);
      if (++stage == Tile::kStages) stage = 0, parity ^= 1;
    }
  }
}

/// Where the sums of a block lie that another pair's tile wants.
struct AheadLeft {
  float4* partial;
  uint32_t* flag;  // of the warp

  __device__ AheadLeft(const AheadArgs& args, int pair, int rank) {
    const int block = pair * 2 + rank;
    partial = reinterpret_cast<float4*>(args.partials) + int64_t{block} * (128 / 4) * 256 + threadIdx.x;
    flag = args.left + block * 8 + threadIdx.x / 32;
  }

  __device__ __forceinline__ void leave(const float (&sums)[128]) const {
#pragma unroll
    for (int i = 0; i < 32; ++i)
      __stcg(partial + i * 256, make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]));
    __syncwarp();
    if (threadIdx.x % 32 == 0) add_release(flag, 1);
  }

  __device__ __forceinline__ void add(float (&sums)[128]) const {
    while (load_acquire(flag) == 0) {
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) *flag = 0;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const float4 v = __ldcg(partial + i * 256);
      sums[4 * i] += v.x, sums[4 * i + 1] += v.y, sums[4 * i + 2] += v.z, sums[4 * i + 3] += v.w;
    }
  }
};

/// Two warp groups, 64 rows of x each.
template <typename T>
__device__ __forceinline__ void consume_ahead(const AheadArgs& args, uint32_t shared, int pair, int pairs, int rank) {
  using Tile = AheadTile;
  const uint32_t full = shared + Tile::kBarriers, empty = full + 8 * Tile::kStages;
  const int group = threadIdx.x / 128, lane = threadIdx.x % 32;
  AheadWalk walk(args, pair, pairs);
  AheadPiece piece;
  int stage = 0;
  uint32_t parity = 0;
  while (walk.next(piece)) {
    float sums[128];
#pragma unroll
    for (float& sum : sums) sum = 0;
    uint32_t to_release = 0;
    int last = 0;  // stage: it serves to store, and is free afterwards
    const auto release = [&] {
      if (to_release && lane < 2) barrier_arrive_at(to_release, static_cast<uint32_t>(lane));
    };
#pragma unroll 1
    for (int left = piece.last - piece.first; left > 0; --left) {
      barrier_wait(full + 8 * stage, parity);
      const uint32_t from = shared + stage * Tile::kStageBytes;
      const uint64_t x = swizzled_operand(from + group * 64 * 128), w = swizzled_operand(from + Tile::kXBytes);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k) SharedWgmma<T, 256>::multiply(sums, x + 2 * k, w + 2 * k);
      wgmma_commit();
      wgmma_wait<1>();  // the stage before is free
      release();
      to_release = empty + 8 * stage;
      last = stage;
      if (++stage == Tile::kStages) stage = 0, parity ^= 1;
    }
    wgmma_wait<0>();
    const int row_tile = piece.tile / args.column_tiles;
    if (threadIdx.x == 0) args.tell_read(row_tile, piece.last - piece.first);
    if (piece.first > 0) {
      release();
      AheadLeft(args, pair, rank).leave(sums);
      continue;
    }
    if (piece.last < args.chunks)
      AheadWalk::for_rest(args, piece, pair, pairs, [&](int next) { AheadLeft(args, next, rank).add(sums); });
    const DeviceJob& job = args.jobs.of_tile(row_tile);
    const auto j = &job - args.jobs.jobs;
    const int n = (row_tile - job.first_tile) * 256;
    const int i = (piece.tile - row_tile * args.column_tiles) * 256 + rank * 128 + group * 64;
    if (job.out.bias) add_bias(job.out.bias, job.rows, n + 2 * (lane % 4), sums);
    store_boxes(args.out[j], n, i, sums, shared + last * Tile::kStageBytes, group);
    release();
  }
}

/// All blocks at once, in clusters of two: they wait for each other's weights. Blocks of 64 or more, a power of two;
/// cols a multiple of 64.
template <typename T>
__global__ void __launch_bounds__(kAheadThreads, 1) ahead_4bit_kernel(const __grid_constant__ AheadArgs args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Tile = AheadTile;
  extern __shared__ __align__(1024) uint8_t ahead_memory[];
  const uint32_t shared = shared_address(ahead_memory);
  const int rank = static_cast<int>(rank_in_pair());
  const int pairs = static_cast<int>(gridDim.x / 2), pair = static_cast<int>(blockIdx.x / 2);
  start_ahead<Tile>(args, ahead_memory, 16);  // the warps of both blocks
  if (threadIdx.x >= 256) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 120;");
    serve_ahead<T, Tile>(args, ahead_memory, [&] { bring_ahead(args, shared, pair, pairs, rank); });
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 192;");
    consume_ahead<T>(args, shared, pair, pairs, rank);
  }
  __syncwarp();
  pair_waits();  // until then the other block may still reach into this one
#endif
}

}  // namespace nibble::kernels::cuda
