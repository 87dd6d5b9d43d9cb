// matmul for many rows of x on Hopper: weights are decoded into registers as the left side of wgmma, x comes through
// shared memory by bulk copies. All tiles' columns form one line that the blocks divide evenly; a tile cut in pieces is
// summed in their order by the block that has its first piece.
#pragma once

#include "kernels/cuda/device/async.cuh"
#include "kernels/cuda/device/job.cuh"
#include "kernels/cuda/device/wgmma.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kTileChunk = 128;  // columns that a thread decodes at once; x moves in halves of it

struct TileArgs {
  DeviceJobs jobs;
  const uint8_t* x;  // prepared (tile_x.cuh): [column tile][chunk][half]
  float* partials;   // a tile for each block
  uint32_t* flags;   // one for each block, zero before and after
  int m, cols, chunks, column_tiles;
  bool waits_for_scales;  // absmax is written by the launch before
  float book[16];
};

/// Pieces of the line of tiles x chunks that one block works on, lowest first.
struct TileRange {
  int64_t at, end;

  __device__ TileRange(const TileArgs& args, int block) : TileRange(args, block, static_cast<int>(gridDim.x)) {}
  __device__ TileRange(const TileArgs& args, int block, int blocks) {
    const int64_t all = int64_t{args.jobs.tiles} * args.column_tiles * args.chunks;
    at = all * block / blocks;
    end = all * (block + 1) / blocks;
  }
};

/// The launch's shared memory: tables, weights' rings, x's ring, barriers.
template <typename Weights, int kColumns, int kGroups>
struct TileShared {
  static constexpr int kXBytes = kColumns * Weights::kXBytes;  // half a chunk
  static constexpr int kWeightStages = Weights::kStages;
  static constexpr int kRingBytes = kWeightStages * kGroups * 128 * Weights::kThreadBytes;
  static constexpr int kRoom = 230000 - Weights::kTableBytes - kRingBytes;
  static constexpr int kXStages = kRoom / kXBytes < 8 ? kRoom / kXBytes : 8;
  static constexpr int kRing = Weights::kTableBytes;
  static constexpr int kX = kRing + kRingBytes;
  static constexpr int kBarriers = kX + kXStages * kXBytes;
  static constexpr int kBytes = kBarriers + 2 * kXStages * 8;
  static_assert(kXStages >= 2 && kBytes <= 232448);
};

template <int kThreads>
__device__ __forceinline__ void consumers_wait() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

/// Blocks are numbered against blockIdx, so that a block only ever waits for blocks that started before it.
__device__ __forceinline__ int tile_block() { return static_cast<int>(gridDim.x - 1 - blockIdx.x); }

/// One thread brings x: half a chunk of kColumns rows a copy.
template <typename Shared, int kHalves>
__device__ __forceinline__ void produce_x(const TileArgs& args, uint32_t shared) {
  const uint32_t full = shared + Shared::kBarriers, empty = full + 8 * Shared::kXStages;
  int stage = 0;
  uint32_t parity = 1;
  wait_for_previous_launch();
  TileRange range(args, tile_block());
  int64_t tile = range.at / args.chunks;
  int chunk = static_cast<int>(range.at - tile * args.chunks);
  for (; range.at < range.end; ++range.at) {
    const int64_t block = (tile % args.column_tiles * args.chunks + chunk) * kHalves;
    for (int half = 0; half < kHalves; ++half) {
      barrier_wait(empty + 8 * stage, parity);
      barrier_expect(full + 8 * stage, Shared::kXBytes);
      copy_bulk(shared + Shared::kX + stage * Shared::kXBytes, args.x + (block + half) * Shared::kXBytes,
                Shared::kXBytes, full + 8 * stage);
      if (++stage == Shared::kXStages) stage = 0, parity ^= 1;
    }
    if (++chunk == args.chunks) chunk = 0, ++tile;
  }
}

/// What another block has released, with all that it wrote before.
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

/// Adds the pieces of this tile that later blocks have, from `at` on. end_of: a block's last piece's end.
template <int kThreads, typename Acc, int kCount, typename EndOf>
__device__ __forceinline__ void add_partials(const TileArgs& args, Acc (&sums)[kCount], int block, int64_t at,
                                             int64_t tile_end, const EndOf& end_of) {
  int last = block;
  while (at < tile_end) at = end_of(++last);
  if (last == block) return;
  for (int next = block + 1 + static_cast<int>(threadIdx.x); next <= last; next += kThreads) {
    uint32_t ready = 0;
    while (!ready) ready = load_acquire(args.flags + next);
    args.flags[next] = 0;
  }
  consumers_wait<kThreads>();
  for (int next = block + 1; next <= last; ++next) {
    const float4* partial =
        reinterpret_cast<const float4*>(args.partials) + int64_t{next} * (kCount / 4) * kThreads + threadIdx.x;
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
      const float4 v = __ldcg(partial + i * kThreads);
      const Acc* a = reinterpret_cast<const Acc*>(&v);
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[4 * i + j] += a[j];
    }
  }
}

template <int kThreads, typename Acc, int kCount>
__device__ __forceinline__ void leave_partial(const TileArgs& args, const Acc (&sums)[kCount], int block) {
  float4* partial = reinterpret_cast<float4*>(args.partials) + int64_t{block} * (kCount / 4) * kThreads + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kCount / 4; ++i) __stcg(partial + i * kThreads, *reinterpret_cast<const float4*>(sums + 4 * i));
  consumers_wait<kThreads>();
  if (threadIdx.x == 0)  // releases what the barrier has shown it too
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(args.flags + block), "r"(1u) : "memory");
}

/// y[i, n] for a thread's sums: rows `row` and 8 on, every eighth pair of columns from `first`. Y: y's elements.
template <typename Y, typename Acc, int kCount, typename Finish>
__device__ __forceinline__ void store_sums_as(const TileArgs& args, const DeviceJob& job, int row, int first,
                                              const Acc (&sums)[kCount], const Finish& finish) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int n = row + 8 * half;
    if (n >= job.rows) continue;
    const float bias = job.out.bias ? job.out.bias[n] : 0.0f;
    Y* y = static_cast<Y*>(job.out.y) + int64_t{first} * job.out.y_stride + n;
#pragma unroll
    for (int j = 0; j < kCount / 4; ++j, y += 8 * job.out.y_stride)
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int i = first + 8 * j + c;
        if (i >= args.m) continue;
        put_at(y + c * job.out.y_stride, finish(sums[4 * j + 2 * half + c], i, n) + bias, job.out.accumulate);
      }
  }
}

template <typename Acc, int kCount, typename Finish>
__device__ __forceinline__ void store_sums(const TileArgs& args, const DeviceJob& job, int row, int first,
                                           const Acc (&sums)[kCount], const Finish& finish) {
  if (job.out.y_dtype == DType::bf16)
    store_sums_as<__nv_bfloat16>(args, job, row, first, sums, finish);
  else
    store_sums_as<float>(args, job, row, first, sums, finish);
}

/// The products of kGroups warp groups.
template <typename Weights, int kColumns, int kGroups>
__device__ __forceinline__ void consume(const TileArgs& args, uint8_t* memory) {
  using Shared = TileShared<Weights, kColumns, kGroups>;
  using Acc = typename Weights::Acc;
  constexpr int kThreads = kGroups * 128, kHalves = Weights::kHalves, kSteps = Weights::kXBytes / 32;
  const uint32_t shared = shared_address(memory);
  const uint32_t full = shared + Shared::kBarriers, empty = full + 8 * Shared::kXStages;
  const int block = tile_block();
  TileRange range(args, block);
  Weights weights(shared + Shared::kRing, shared, 64 * kGroups, kThreads);
  if (!args.waits_for_scales) weights.start(args, range);
  Weights::fill_table(args, memory, kThreads);
  if (args.waits_for_scales) {
    wait_for_previous_launch();
    weights.start(args, range);
  }
  consumers_wait<kThreads>();
  weights.take();

  Acc sums[kColumns / 2];
  uint32_t fragments[2][kSteps][4];
  int stage = 0;
  uint32_t parity = 0;
  uint32_t to_release = 0;
  while (range.at < range.end) {
    const int64_t tile = range.at / args.chunks;
    const int64_t tile_end = (tile + 1) * args.chunks, piece_end = min(range.end, tile_end);
    const bool has_first = range.at == tile * args.chunks;
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) sums[i] = 0;
    for (int left = static_cast<int>(piece_end - range.at); left > 0; --left) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        weights.decode(half, fragments[half % 2]);
        if (half == 0) weights.prefetch(args);
        barrier_wait(full + 8 * stage, parity);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
          Wgmma<typename Weights::X, kColumns>::multiply(
              sums, fragments[half % 2][step],
              wgmma_operand(shared + Shared::kX + stage * Shared::kXBytes + step * kColumns * 32, kColumns * 16, 128));
        wgmma_commit();
        if (half == kHalves - 1) weights.take();
        wgmma_wait<1>();  // the half before: its fragments and its x are free
        if (to_release && weights.thread() % 32 == 0) barrier_arrive(to_release);
        to_release = empty + 8 * stage;
        if (++stage == Shared::kXStages) stage = 0, parity ^= 1;
      }
    }
    wgmma_wait<0>();
    range.at = piece_end;
    if (!has_first) {
      leave_partial<kThreads>(args, sums, block);
      continue;
    }
    add_partials<kThreads>(args, sums, block, piece_end, tile_end, [&](int next) { return TileRange(args, next).end; });
    const int row_tile = static_cast<int>(tile / args.column_tiles);
    const DeviceJob& job = args.jobs.of_tile(row_tile);
    const int lane = threadIdx.x % 32;
    const int row = (row_tile - job.first_tile) * 64 * kGroups + threadIdx.x / 32 * 16 + lane / 4;
    const int first = static_cast<int>(tile % args.column_tiles) * kColumns + 2 * (lane % 4);
    Weights::store(args, job, row, first, sums);
  }
}

/// kColumns rows of x (the columns of D) by 64 * kGroups weight rows a tile. Weights: weights_tile.cuh.
template <typename Weights, int kColumns, int kGroups>
__global__ void __launch_bounds__(kGroups * 128 + 128, 1) tile_kernel(const __grid_constant__ TileArgs args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(128) uint8_t memory[];
  using Shared = TileShared<Weights, kColumns, kGroups>;
  constexpr int kThreads = kGroups * 128, kHalves = Weights::kHalves;
  const uint32_t shared = shared_address(memory);
  const uint32_t full = shared + Shared::kBarriers, empty = full + 8 * Shared::kXStages;
  if (threadIdx.x == 0) {
    for (int s = 0; s < Shared::kXStages; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, kThreads / 32);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x >= kThreads) {  // a warp group of its own, so that the others can have its registers
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == kThreads) produce_x<Shared, kHalves>(args, shared);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kGroups == 2 ? 240 : 112));
    consume<Weights, kColumns, kGroups>(args, memory);
  }
#endif
}

}  // namespace nibble::kernels::cuda
