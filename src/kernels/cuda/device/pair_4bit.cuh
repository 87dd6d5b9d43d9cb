// 4-bit products of many rows of x on Hopper: blocks work in pairs on 256 weight rows and share x, each bringing half
// of it to both; a warp decodes its own weight rows, 32 columns at a time, beside the products of those before. All
// tiles' columns form one line that the pairs divide evenly, as in tile.cuh.
#pragma once

#include "kernels/cuda/device/pair_copies.cuh"
#include "kernels/cuda/device/pair_store.cuh"

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

/// The scales of a warp's weight rows, under way in registers two chunks ahead: each lane brings one for a row and half
/// a chunk.
template <typename Shape>
class PairScales {
 public:
  /// first_row: of the warp, in a tile.
  __device__ PairScales(const Tile4BitArgs& args, const uint8_t* memory, const TileRange& range, int first_row,
                        int lane)
      : args_(args),
        book_(reinterpret_cast<const float*>(memory + Shape::kBook)),
        left_(static_cast<int>(range.end - range.at)),
        tile_(static_cast<int>(range.at / args.tile.chunks)),
        first_row_(first_row),
        lane_(lane) {
    if (left_ > 0) enter_tile(static_cast<int>(range.at - int64_t{tile_} * args.tile.chunks));
#pragma unroll
    for (Fetched& slot : ahead_) fetch(slot);
  }

  /// The next chunk's scales: [2 * half of the chunk + row, of the thread's two].
  __device__ __forceinline__ void take(float (&scales)[4]) {
    float scale = ahead_[0].value;
    if (args_.is_nested)
      scale =
          nested_value(book_[ahead_[0].code], scale, args_.tile.jobs.jobs[ahead_[0].code / 256].weight.absmax.offset);
    ahead_[0] = ahead_[1];
    fetch(ahead_[1]);
    scale *= args_.unscale;
#pragma unroll
    for (int i = 0; i < 4; ++i) scales[i] = __shfl_sync(kFullMask, scale, lane_ / 4 + 8 * i);
  }

 private:
  struct Fetched {
    float value;
    uint32_t code;  // with 256 for each job before
  };

  __device__ __forceinline__ void fetch(Fetched& slot) {
    slot.value = 0;
    slot.code = code_of_job_;
    if (left_ > 0 && unit_ < args_.tile.cols >> 6) {
      const uint32_t block = (row_ + static_cast<uint32_t>(unit_)) >> unit_shift_;
      if (args_.is_nested) {
        slot.code += __ldg(codes_ + block);
        slot.value = __ldg(values_ + block / quant::kNestedBlock);
      } else {
        slot.value = __ldg(values_ + block);
      }
    }
    unit_ += 2;
    if (--left_ > 0 && unit_ >= 2 * args_.tile.chunks) {
      ++tile_;
      enter_tile(0);
    }
  }

  /// Keeps what is needed of the tile's job in registers.
  __device__ __forceinline__ void enter_tile(int chunk) {
    const int row_tile = tile_ / args_.tile.column_tiles;
    const DeviceJob& job = args_.tile.jobs.of_tile(row_tile);
    const int row = min((row_tile - job.first_tile) * Shape::rows + first_row_ + lane_ % 16, job.rows - 1);
    row_ = static_cast<uint32_t>(row) * static_cast<uint32_t>(args_.tile.cols >> 6);
    unit_ = 2 * chunk + lane_ / 16;
    const Absmax& absmax = job.weight.absmax;
    values_ = args_.is_nested ? absmax.nested_absmax : absmax.values;
    codes_ = absmax.codes;
    unit_shift_ = static_cast<uint32_t>(job.weight.block_shift - 6);
    code_of_job_ = 256 * static_cast<uint32_t>(&job - args_.tile.jobs.jobs);
  }

  const Tile4BitArgs& args_;
  const float* book_;
  int left_, tile_, first_row_, lane_, unit_ = 0;  // unit_: of 64 columns, in a row
  Fetched ahead_[2];
  uint32_t row_ = 0, unit_shift_ = 0, code_of_job_ = 0;  // row_: in such units from the weight's start
  const float* values_ = nullptr;
  const uint8_t* codes_ = nullptr;
};

/// The products of one warp's rows: a pipeline of steps of 32 columns, whose codes are read two steps and looked up one
/// step ahead.
template <typename T, typename Shape>
class Pair4BitProducts {
 public:
  float sums[Shape::sums];

  /// count: of chunks.
  __device__ Pair4BitProducts(uint32_t shared, int first_row, int lane, int count, PairScales<Shape>& scales)
      : x_(swizzled_operand(shared + Shape::kStage)),
        codes_(shared + Shape::kStage + Shape::kXBytes + (first_row + lane / 4) * 32 + lane / 16 * 16),
        full_(shared + Shape::kBarriers),
        lane_(lane),
        place_(4 * lane),
        selector_(0x5504 | lane % 4 << 4),
        left_(2 * count) {
    scales.take(scales_);
    if (left_ == 0) return;
    barrier_wait(full_, 0);
    read<0>(0);
    read<1>(0);
    look_up<0>();
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (float& sum : sums) sum = 0;
  }

  /// One chunk.
  __device__ __forceinline__ void multiply(PairScales<Shape>& scales) {
    half<0>(scales);
    half<1>(scales);
  }

  /// Until the sums are there.
  __device__ __forceinline__ void finish() {
    wgmma_wait<0>();
    release();
    to_release_ = 0;
  }

 private:
  template <int kHalf>
  __device__ __forceinline__ void half(PairScales<Shape>& scales) {
    const int next = stage_ + 1 == Shape::kStages ? 0 : stage_ + 1;
    const uint64_t x = x_ + static_cast<uint32_t>(stage_ * (Shape::kStageBytes / 16));
    start<0, kHalf>(x);
    --left_;
    if (next == 0) parity_ ^= 1;
    if (left_ > 0) {
      barrier_wait(full_ + 8 * next, parity_);
      read<0>(next);
    }
    wgmma_wait<1>();  // the step before: its fragments are free, and its stage
    release();
    to_release_ = full_ + 8 * (Shape::kStages + stage_);
    start<1, kHalf>(x);
    if (left_ > 0) read<1>(next);
    if constexpr (kHalf == 1) scales.take(scales_);
    wgmma_wait<1>();
    stage_ = next;
  }

  /// A step's codes of a stage.
  template <int kStep>
  __device__ __forceinline__ void read(int stage) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint4 v = load_shared_16((codes_ ^ kStep * 16) + stage * Shape::kStageBytes + 256 * r);
      words_[kStep][r][0] = v.x, words_[kStep][r][1] = v.y, words_[kStep][r][2] = v.z, words_[kStep][r][3] = v.w;
    }
  }

  /// A step's pairs of code book values.
  template <int kStep>
  __device__ __forceinline__ void look_up() {
    extern __shared__ __align__(1024) uint8_t tile_memory[];
#pragma unroll
    for (int i = 0; i < 8; ++i)
      pairs_[i] =
          *reinterpret_cast<const uint32_t*>(tile_memory + __byte_perm(words_[kStep][i % 2][i / 2], place_, selector_));
  }

  /// Starts a step's products.
  template <int kStep, int kHalf>
  __device__ __forceinline__ void start(uint64_t x) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float2 values = __half22float2(reinterpret_cast<const __half2&>(pairs_[i]));
      const float scale = scales_[2 * kHalf + i % 2];
      fragments_[kStep][i / 4][i % 4] = round_pair<T>(__fmul_rn(values.x, scale), __fmul_rn(values.y, scale));
    }
    look_up<1 - kStep>();
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 2; ++i) Wgmma<T, Shape::columns>::multiply(sums, fragments_[kStep][i], x + 4 * kStep + 2 * i);
    wgmma_commit();
  }

  __device__ __forceinline__ void release() const {
    if (to_release_ && lane_ < 2) barrier_arrive_at(to_release_, static_cast<uint32_t>(lane_));
  }

  uint32_t fragments_[2][2][4], words_[2][2][4], pairs_[8];
  float scales_[4];
  uint64_t x_;  // the operand in the first stage
  uint32_t codes_, full_;
  int lane_;
  uint32_t place_, selector_;
  uint32_t parity_ = 0, to_release_ = 0;
  int stage_ = 0, left_;
};

template <typename T, typename Shape>
__device__ __forceinline__ void consume_pairs(const Tile4BitArgs& args, uint8_t* memory, int pair, int pairs,
                                              int rank) {
  TileRange range(args.tile, pair, pairs);
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));  // read once: it costs more than a register
  const int group = thread / 128, lane = thread % 32, first_row = thread / 32 * 16;
  PairScales<Shape> scales(args, memory, range, rank * 128 + first_row, lane);
  wait_for_previous_launch();  // which may still write y

  const TileArgs& tile_args = args.tile;
  const uint32_t shared = shared_address(memory);
  Pair4BitProducts<T, Shape> products(shared, first_row, lane, static_cast<int>(range.end - range.at), scales);
  while (range.at < range.end) {
    const int64_t tile = range.at / tile_args.chunks, tile_end = (tile + 1) * tile_args.chunks;
    const int64_t piece_end = min(range.end, tile_end);
    const bool has_first = range.at == tile * tile_args.chunks;
    products.clear();
#pragma unroll 1
    for (int left = static_cast<int>(piece_end - range.at); left > 0; --left) products.multiply(scales);
    range.at = piece_end;
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
  allow_next_launch();
  if (threadIdx.x < Shape::threads) fill_table<T, Shape>(args, tile_memory);
  if (threadIdx.x == Shape::threads) {
    for (int s = 0; s < Shape::kStages; ++s) {
      barrier_init(full + 8 * s, 2);
      barrier_init(empty + 8 * s, 2 * Shape::warps);  // of both blocks
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    PairCursor<Shape> at(args, pair, pairs, rank);
    bring_codes(at, shared, true);
  }
  __syncwarp();
  pair_waits();
  if (threadIdx.x >= Shape::threads) {  // a warp group of its own, so that the others can have its registers
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x % 32 == 0 && threadIdx.x < Shape::threads + 64) {
      PairCursor<Shape> at(args, pair, pairs, rank);
      if (threadIdx.x == Shape::threads)
        bring_x(args, at, shared, rank);
      else
        bring_codes(at, shared, false);
    } else if (threadIdx.x >= Shape::threads + 64) {
      const TileRange range(args.tile, pair, pairs);
      const int group = static_cast<int>(threadIdx.x - Shape::threads) / 32 - 2;
      if (range.at % args.tile.chunks != 0) PairPiece<Shape>(args.tile, pair, rank, group).tell(group);
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    consume_pairs<T, Shape>(args, tile_memory, pair, pairs, rank);
  }
  __syncwarp();
  pair_waits();  // until then the other block may still reach into this one
#endif
}

}  // namespace nibble::kernels::cuda
