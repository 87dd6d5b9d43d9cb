// 4-bit products of many rows of x on Hopper: blocks work in pairs on 256 weight rows and share x, each bringing half
// of it to both; a warp decodes its own weight rows, 16 columns at a time, beside the products of those before. All
// tiles' columns form one line that the pairs divide evenly, as in tile.cuh.
#pragma once

#include "kernels/cuda/device/tile_4bit.cuh"

namespace nibble::kernels::cuda {

/// A tile: kColumns rows of x by 128 weight rows of each block.
template <int kColumns>
struct Pair4BitShape {
  static constexpr bool is_late = false;
  static constexpr int columns = kColumns, subs = 1, depth_groups = 1;
  static constexpr int rows = 256;  // of both blocks
  static constexpr int threads = 256, warps = threads / 32;
  static constexpr int sums = kColumns / 2;  // of a thread

  static constexpr int kTableRow = 256;  // so that one byte permutation makes an address; the other half holds results
  static constexpr int kBook = 256 * kTableRow;
  static constexpr int kStage = kBook + kMaxJobs * 1024;  // the first: 64 columns of x, then of codes
  static constexpr int kXBytes = kColumns * 128, kCodeBytes = 128 * 32;
  static constexpr int kStageBytes = kXBytes + kCodeBytes;
  static constexpr int kRoom = (232192 - kStage) / kStageBytes;
  static constexpr int kStages = kRoom < 8 ? kRoom : 8;
  static constexpr int kBarriers = kStage + kStages * kStageBytes;
  static constexpr int kBytes = kBarriers + 2 * kStages * 8;
  static_assert(kStages >= 2 && kBytes <= 232448 && kStageBytes % 1024 == 0);
};

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

/// One thread brings the block's codes, and its half of x to both blocks, 64 columns a stage.
template <typename Shape>
__device__ __forceinline__ void produce_pairs(const Tile4BitArgs& args, uint32_t shared, const TileRange& range,
                                              int rank) {
  const uint32_t full = shared + Shape::kBarriers, empty = full + 8 * Shape::kStages;
  const TileArgs& tile = args.tile;
  const int count = 2 * static_cast<int>(range.end - range.at), at_once = min(count, Shape::kStages);
  const auto bring_codes = [&](const TileCursor& at, int half, int stage) {
    const int row_tile = at.tile / tile.column_tiles;
    const DeviceJob& job = tile.jobs.of_tile(row_tile);
    barrier_expect(full + 8 * stage, Shape::kStageBytes);
    copy_box(shared + Shape::kStage + stage * Shape::kStageBytes + Shape::kXBytes, args.codes[&job - tile.jobs.jobs],
             at.chunk * 64 + half * 32, (row_tile - job.first_tile) * Shape::rows + rank * 128, full + 8 * stage);
  };
  TileCursor codes(tile, range.at), x = codes;
  for (int i = 0; i < at_once; ++i) {
    bring_codes(codes, i % 2, i);
    if (i % 2 == 1) codes.advance(1, tile.chunks);
  }
  wait_for_previous_launch();
  int stage = 0;
  uint32_t parity = 1;
  for (int i = 0; i < count; ++i) {
    if (i >= at_once) {
      barrier_wait(empty + 8 * stage, parity);
      bring_codes(x, i % 2, stage);
    }
    const uint32_t to = shared + Shape::kStage + stage * Shape::kStageBytes + rank * (Shape::kXBytes / 2);
    const int row = x.tile % tile.column_tiles * Shape::columns + rank * (Shape::columns / 2);
    copy_box_to_pair(to, args.x, x.chunk * 256 + i % 2 * 128, row, full + 8 * stage);
    if (i % 2 == 1) x.advance(1, tile.chunks);
    if (++stage == Shape::kStages) stage = 0, parity ^= 1;
  }
}

/// The products of one warp's rows: a pipeline of steps of 16 columns, whose codes are read two steps and looked up
/// one step ahead.
template <typename T, typename Shape>
class Pair4BitProducts {
 public:
  float sums[Shape::sums];

  /// count: of chunks.
  __device__ Pair4BitProducts(uint32_t shared, int first_row, int lane, int count)
      : x_(swizzled_operand(shared + Shape::kStage)),
        codes_(shared + Shape::kStage + Shape::kXBytes + (first_row + lane / 4) * 32 + lane / 16 * 16),
        full_(shared + Shape::kBarriers),
        lane_(lane),
        place_(4 * lane),
        selector_(0x5504 | lane % 4 << 4),
        left_(2 * count) {
    if (left_ == 0) return;
    barrier_wait(full_, 0);
    read<0>(0);
    look_up<0>();
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (float& sum : sums) sum = 0;
  }

  /// One chunk.
  __device__ __forceinline__ void multiply(Tile4BitScales<Shape>& scales) {
    float taken[1][4];
    scales.take(taken);
    half(taken[0][0], taken[0][1]);
    half(taken[0][2], taken[0][3]);
  }

  /// Until the sums are there.
  __device__ __forceinline__ void finish() {
    wgmma_wait<0>();
    release();
    to_release_ = 0;
  }

 private:
  __device__ __forceinline__ void half(float upper, float lower) {
    const float scales[2] = {upper, lower};
    const int next = stage_ + 1 == Shape::kStages ? 0 : stage_ + 1;
    const uint64_t x = x_ + static_cast<uint32_t>(stage_ * (Shape::kStageBytes / 16));
    --left_;
    read<1>(stage_);
    step<0>(x, scales);
    step<1>(x, scales);
    release();
    to_release_ = full_ + 8 * (Shape::kStages + stage_);
    if (next == 0) parity_ ^= 1;
    if (left_ > 0) {
      barrier_wait(full_ + 8 * next, parity_);
      read<0>(next);
    }
    step<2>(x, scales);
    step<3>(x, scales);
    stage_ = next;
  }

  /// Two steps' codes of a stage.
  template <int kPart>
  __device__ __forceinline__ void read(int stage) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint4 v = load_shared_16((codes_ ^ kPart * 16) + stage * Shape::kStageBytes + 256 * r);
      words_[kPart][r][0] = v.x, words_[kPart][r][1] = v.y, words_[kPart][r][2] = v.z, words_[kPart][r][3] = v.w;
    }
  }

  /// A step's pairs of code book values.
  template <int kStep>
  __device__ __forceinline__ void look_up() {
    extern __shared__ __align__(1024) uint8_t tile_memory[];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      pairs_[i] = *reinterpret_cast<const uint32_t*>(
          tile_memory + __byte_perm(words_[kStep / 2][i % 2][kStep % 2 * 2 + i / 2], place_, selector_));
  }

  template <int kStep>
  __device__ __forceinline__ void step(uint64_t x, const float (&scales)[2]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 values = __half22float2(reinterpret_cast<const __half2&>(pairs_[i]));
      fragments_[kStep][i] = round_pair<T>(__fmul_rn(values.x, scales[i % 2]), __fmul_rn(values.y, scales[i % 2]));
    }
    look_up<(kStep + 1) % 4>();
    wgmma_fence();
    Wgmma<T, Shape::columns>::multiply(sums, fragments_[kStep], x + 2 * kStep);
    wgmma_commit();
    wgmma_wait<1>();  // the step before; after the second one, the stage before is free
  }

  __device__ __forceinline__ void release() const {
    if (to_release_ && lane_ < 2) barrier_arrive_at(to_release_, static_cast<uint32_t>(lane_));
  }

  uint32_t fragments_[4][4], words_[2][2][4], pairs_[4];
  uint64_t x_;  // the operand in the first stage
  uint32_t codes_, full_;
  int lane_;
  uint32_t place_, selector_;
  uint32_t parity_ = 0, to_release_ = 0;
  int stage_ = 0, left_;
};

/// Of the 128 threads of a warp group.
__device__ __forceinline__ void group_waits(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(group + 3) : "memory");
}

/// Where the sums of one warp group of one block lie while the tile's owner wants them.
template <typename Shape>
struct PairPiece {
  float4* partial;
  uint32_t* flag;

  __device__ PairPiece(const TileArgs& args, int pair, int rank, int group) {
    const int at = (pair * 2 + rank) * 2 + group;
    partial = reinterpret_cast<float4*>(args.partials) + int64_t{at} * (Shape::sums / 4) * 128 + threadIdx.x % 128;
    flag = args.flags + at;
  }

  __device__ __forceinline__ void leave(const float (&sums)[Shape::sums], int group) const {
#pragma unroll
    for (int i = 0; i < Shape::sums / 4; ++i)
      __stcg(partial + i * 128, make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]));
    __threadfence();
    group_waits(group);
    if (threadIdx.x % 128 == 0) asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(1u) : "memory");
  }

  __device__ __forceinline__ void add(float (&sums)[Shape::sums], int group) const {
    if (threadIdx.x % 128 == 0) {
      uint32_t ready = 0;
      while (!ready) asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(ready) : "l"(flag) : "memory");
      *flag = 0;
    }
    group_waits(group);
#pragma unroll
    for (int i = 0; i < Shape::sums / 4; ++i) {
      const float4 v = __ldcg(partial + i * 128);
      sums[4 * i] += v.x, sums[4 * i + 1] += v.y, sums[4 * i + 2] += v.z, sums[4 * i + 3] += v.w;
    }
  }
};

/// A thread's sums added to what y[i, n] should get beside them: the bias of its two rows of the weight.
template <typename Shape>
__device__ __forceinline__ void load_bias(const DeviceJob& job, int n, float (&bias)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) bias[h] = job.out.bias ? job.out.bias[min(n + 8 * h, job.rows - 1)] : 0.0f;
}

/// y[i, n] for a thread's sums: rows n and 8 on of the weight, every eighth pair of rows of x from i on. What is added
/// to is loaded for sixteen at a time.
template <typename Y, typename Shape>
__device__ __forceinline__ void store_each(const TileArgs& args, const DeviceJob& job, int n, int i,
                                           const float (&sums)[Shape::sums]) {
  float bias[2];
  load_bias<Shape>(job, n, bias);
  Y* y = static_cast<Y*>(job.out.y) + int64_t{i} * job.out.y_stride + n;
  const bool is_row[2] = {n < job.rows, n + 8 < job.rows};
#pragma unroll
  for (int first = 0; first < Shape::sums; first += 16) {
    float values[16];
    const auto at = [&](int e) { return (2 * first + e / 4 * 8 + e % 2) * job.out.y_stride + e % 4 / 2 * 8; };
    const auto is_inside = [&](int e) { return is_row[e % 4 / 2] && i + 2 * first + e / 4 * 8 + e % 2 < args.m; };
    if (job.out.accumulate) {
#pragma unroll
      for (int e = 0; e < 16; ++e) values[e] = is_inside(e) ? to_float(y[at(e)]) : 0.0f;
    } else {
#pragma unroll
      for (float& value : values) value = 0;
    }
#pragma unroll
    for (int e = 0; e < 16; ++e)
      if (is_inside(e)) y[at(e)] = from_float<Y>(values[e] + (sums[first + e] + bias[e % 4 / 2]));
  }
}

/// y in bf16 and aligned, turned through the table's unused halves so that whole lines are stored: 64 rows of the
/// weight from `row` by the tile's rows of x from `column` on.
template <typename Shape>
__device__ __forceinline__ void store_turned(const TileArgs& args, const DeviceJob& job, int row, int column,
                                             const float (&sums)[Shape::sums], uint32_t shared, int group) {
  constexpr int kAtOnce = 128;  // rows of x, one in each row of the group's part of the table
  const int thread = static_cast<int>(threadIdx.x) % 128, warp = thread / 32, lane = thread % 32;
  const uint32_t memory = shared + group * kAtOnce * Shape::kTableRow + 128;
  float bias[2];
  load_bias<Shape>(job, row + warp * 16 + lane / 4, bias);
  const uint32_t to =
      memory + (lane / 16 * 8 + lane % 8) * Shape::kTableRow + ((2 * warp + lane / 8 % 2) ^ lane % 8) * 16;
  const int n = row + thread % 8 * 8;
#pragma unroll
  for (int first = 0; first < Shape::columns; first += kAtOnce) {
#pragma unroll
    for (int j = 0; j < kAtOnce / 16; ++j) {
      if (first + 16 * j >= Shape::columns) break;
      uint32_t words[4];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const float* pair = sums + first / 2 + 8 * j + 4 * (m / 2) + 2 * (m % 2);
        words[m] = round_pair<__nv_bfloat16>(pair[0] + bias[m % 2], pair[1] + bias[m % 2]);
      }
      asm volatile(
          "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(to + j * 16 * Shape::kTableRow),
          "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
          : "memory");
    }
    group_waits(group);
    const int count = min(min(kAtOnce, Shape::columns - first), args.m - column - first);
    for (int i = thread / 8; i < count; i += 16) {
      const uint4 v = load_shared_16(memory + i * Shape::kTableRow + (thread % 8 ^ i % 8) * 16);
      __nv_bfloat16* y = static_cast<__nv_bfloat16*>(job.out.y) + int64_t{column + first + i} * job.out.y_stride + n;
      if (n + 8 <= job.rows) {
        *reinterpret_cast<uint4*>(y) = v;
      } else {
        const __nv_bfloat16* values = reinterpret_cast<const __nv_bfloat16*>(&v);
#pragma unroll
        for (int c = 0; c < 8; ++c)
          if (n + c < job.rows) y[c] = values[c];
      }
    }
    group_waits(group);
  }
}

/// 64 rows of the weight from `row` on, rows of x from `column` on.
template <typename Shape>
__device__ __forceinline__ void store_group(const TileArgs& args, const DeviceJob& job, int row, int column,
                                            const float (&sums)[Shape::sums], uint32_t shared, int group) {
  const int n = row + static_cast<int>(threadIdx.x) % 128 / 32 * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
  const int i = column + 2 * (static_cast<int>(threadIdx.x) % 4);
  if (job.out.y_dtype != DType::bf16)
    store_each<float, Shape>(args, job, n, i, sums);
  else if (job.out.accumulate || job.out.y_stride % 8 != 0 || reinterpret_cast<uint64_t>(job.out.y) % 16 != 0)
    store_each<__nv_bfloat16, Shape>(args, job, n, i, sums);
  else
    store_turned<Shape>(args, job, row, column, sums, shared, group);
}

template <typename T, typename Shape>
__device__ __forceinline__ void consume_pairs(const Tile4BitArgs& args, uint8_t* memory, int pair, int pairs,
                                              TileRange range, int rank) {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));  // read once: it costs more than a register
  const int group = thread / 128, lane = thread % 32, first_row = thread / 32 * 16;
  Tile4BitScales<Shape> scales(args, memory, range, 0, rank * 128 + first_row, lane);
  fill_table<T, Shape>(args, memory);
  wait_for_previous_launch();
  all_consumers_wait<Shape::threads>();

  const TileArgs& tile_args = args.tile;
  const uint32_t shared = shared_address(memory);
  Pair4BitProducts<T, Shape> products(shared, first_row, lane, static_cast<int>(range.end - range.at));
  while (range.at < range.end) {
    const int64_t tile = range.at / tile_args.chunks, tile_end = (tile + 1) * tile_args.chunks;
    const int64_t piece_end = min(range.end, tile_end);
    const bool has_first = range.at == tile * tile_args.chunks;
    products.clear();
#pragma unroll 1
    for (; range.at < piece_end; ++range.at) products.multiply(scales);
    products.finish();
    if (!has_first) {
      PairPiece<Shape>(tile_args, pair, rank, group).leave(products.sums, group);
      continue;
    }
    int64_t at = piece_end;
    for (int next = pair + 1; at < tile_end; ++next) {
      PairPiece<Shape>(tile_args, next, rank, group).add(products.sums, group);
      at = TileRange(tile_args, next, pairs).end;
    }
    const int row_tile = static_cast<int>(tile / tile_args.column_tiles);
    const DeviceJob& job = tile_args.jobs.of_tile(row_tile);
    const int row = (row_tile - job.first_tile) * Shape::rows + rank * 128 + group * 64;
    const int column = static_cast<int>(tile % tile_args.column_tiles) * Shape::columns;
    store_group<Shape>(tile_args, job, row, column, products.sums, shared, group);
  }
}

/// Launched in clusters of two. Blocks of 64 or more, a power of two; cols a multiple of 64.
template <typename T, typename Shape>
__global__ void __launch_bounds__(Shape::threads + 128, 1) pair_4bit_kernel(const __grid_constant__ Tile4BitArgs args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t tile_memory[];
  const uint32_t shared = shared_address(tile_memory);
  const uint32_t full = shared + Shape::kBarriers, empty = full + 8 * Shape::kStages;
  const int rank = static_cast<int>(rank_in_pair());
  const int pairs = static_cast<int>(gridDim.x / 2), pair = pairs - 1 - static_cast<int>(blockIdx.x / 2);
  const TileRange range(args.tile, pair, pairs);
  allow_next_launch();
  if (threadIdx.x == 0) {
    for (int s = 0; s < Shape::kStages; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, 2 * Shape::warps);  // of both blocks
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  pair_waits();
  if (threadIdx.x >= Shape::threads) {  // a warp group of its own, so that the others can have its registers
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == Shape::threads) produce_pairs<Shape>(args, shared, range, rank);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    consume_pairs<T, Shape>(args, tile_memory, pair, pairs, range, rank);
  }
  __syncwarp();
  pair_waits();  // until then the other block may still reach into this one
#endif
}

}  // namespace nibble::kernels::cuda
