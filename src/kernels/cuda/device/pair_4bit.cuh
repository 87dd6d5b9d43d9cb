// 4-bit products of many rows of x on Hopper: blocks work in pairs on 256 weight rows and share x, each bringing half
// of it to both; a warp decodes its own weight rows, 32 columns at a time, beside the products of those before. All
// tiles' columns form one line that the pairs divide evenly, as in tile.cuh.
#pragma once

#include "kernels/cuda/device/cut_4bit.cuh"
#include "kernels/cuda/device/pair_copies.cuh"
#include "kernels/cuda/device/pair_store.cuh"

namespace nibble::kernels::cuda {

/// A tile: kColumns rows of x by 128 weight rows of each block. kCut: as cut_4bit.cuh has it.
template <int kColumns, bool kCut = false>
struct Pair4BitShape {
  static constexpr bool is_late = false, is_cut = kCut;
  static constexpr int columns = kColumns, depth_groups = 1, cluster = 2, steps = 2, blocks = 1;
  static constexpr int rows = 256;  // of both blocks
  static constexpr int lower = 8;   // from a thread's first row to its second
  static constexpr bool is_gated = false;
  static constexpr int threads = 256, warps = threads / 32, all_threads = threads + 128;
  static constexpr int sums = kColumns / 2;  // of a thread
  static constexpr int extra = 1;            // in chunks, what finishing a tile costs

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

/// The products of one warp's rows: a pipeline of steps of 32 columns, whose codes are read two steps and looked up one
/// step ahead.
template <typename T, typename Shape>
class Pair4BitProducts {
 public:
  float sums[Shape::sums];

  /// count: of chunks.
  __device__ Pair4BitProducts(uint32_t shared, int first_row, int lane, int count, Tile4BitScales<Shape>& scales)
      : x_(static_cast<uint32_t>(swizzled_operand(kSharedBegin + Shape::kStage))),
        codes_(shared + Shape::kStage + Shape::kXBytes + (first_row + lane / 4) * 32 + lane / 16 * 16),
        full_(shared + Shape::kBarriers),
        lane_(lane),
        place_((shared & kRankBits) | 4 * lane),
        selector_(0x7604 | lane % 4 << 4),
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
  __device__ __forceinline__ void multiply(Tile4BitScales<Shape>& scales) {
    half<0>(scales);
    half<1>(scales);
  }

  /// Until the sums are there.
  __device__ __forceinline__ void finish() {
    wgmma_wait<0>();
    release();
    to_release_ = 0;
  }

  /// What another pair left, out of the ring.
  __device__ __forceinline__ void add_piece(int group) {
    constexpr int kHalf = Shape::sums / 2;
#pragma unroll
    for (int part = 0; part < PairPiece<Shape>::kParts; ++part) {
      barrier_wait(full_ + 8 * stage_, parity_);
      if (part / 2 == group) {
        const uint32_t from =
            full_ - Shape::kBarriers + Shape::kStage + stage_ * Shape::kStageBytes + threadIdx.x % 128 * 16;
#pragma unroll
        for (int i = 0; i < kHalf / 4; ++i) {
          const uint4 v = load_shared_16(from + i * 2048);
          float* to = sums + part % 2 * kHalf + 4 * i;
          to[0] += __uint_as_float(v.x), to[1] += __uint_as_float(v.y);
          to[2] += __uint_as_float(v.z), to[3] += __uint_as_float(v.w);
        }
      }
      __syncwarp();
      to_release_ = full_ + 8 * (Shape::kStages + stage_);
      release();
      to_release_ = 0;
      if (++stage_ == Shape::kStages) stage_ = 0, parity_ ^= 1;
    }
  }

 private:
  template <int kHalf>
  __device__ __forceinline__ void half(Tile4BitScales<Shape>& scales) {
    const int next = stage_ + 1 == Shape::kStages ? 0 : stage_ + 1;
    const uint32_t x = x_ + static_cast<uint32_t>(stage_ * (Shape::kStageBytes / 16));
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
    if constexpr (kHalf == 0) scales.look_up();
    if constexpr (kHalf == 1) scales.take_looked_up(scales_);
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
#pragma unroll
    for (int i = 0; i < 8; ++i) pairs_[i] = table_pair(__byte_perm(words_[kStep][i % 2][i / 2], place_, selector_));
  }

  /// Starts a step's products.
  template <int kStep, int kHalf>
  __device__ __forceinline__ void start(uint32_t x) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float2 values = __half22float2(reinterpret_cast<const __half2&>(pairs_[i]));
      const float scale = scales_[2 * kHalf + i % 2];
      fragments_[kStep][i / 4][i % 4] = round_pair<T>(__fmul_rn(values.x, scale), __fmul_rn(values.y, scale));
    }
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 2; ++i)
      Wgmma<T, Shape::columns>::multiply(sums, fragments_[kStep][i], operand_at(x + 4 * kStep + 2 * i));
    wgmma_commit();
    look_up<1 - kStep>();  // not before: what starts the products would queue behind it
  }

  __device__ __forceinline__ void release() const {
    if (to_release_ == 0) return;
    barrier_arrive(to_release_);  // every lane, as all of them have read
    if (lane_ < 2) barrier_arrive_at(to_release_, static_cast<uint32_t>(lane_));
  }

  uint32_t fragments_[2][2][4], words_[2][2][4], pairs_[8];
  float scales_[4];
  uint32_t x_;  // the operand in the first stage
  uint32_t codes_, full_;
  int lane_;
  uint32_t place_, selector_;
  uint32_t parity_ = 0, to_release_ = 0;
  int stage_ = 0, left_;
};

template <typename Shape>
__device__ __forceinline__ void finish_cut_pair(const Tile4BitArgs& args, const float (&sums)[Shape::sums], int tile,
                                                int pair, int rank, int first_row, int lane) {
  const TileArgs& line = args.tile;
  const int row_tile = tile / line.column_tiles;
  const DeviceJob& job = line.jobs.of_tile(row_tile);
  const int row = (row_tile - job.first_tile) * Shape::rows + rank * 128 + first_row + lane / 4;
  const int first = tile % line.column_tiles * Shape::columns + 2 * (lane % 4);
  finish_cut_tile<Shape::threads>(args, {2 * pair + rank, pair % args.cuts, 2}, job, row, first, sums);
}

template <typename T, typename Shape>
__device__ __forceinline__ void consume_pairs(const Tile4BitArgs& args, uint8_t* memory, int pair, int pairs,
                                              int rank) {
  TileShare share = share_of<Shape>(args, pair, pairs);
  const TileShare all = share;
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));  // read once: it costs more than a register
  const int group = thread / 128, lane = thread % 32, first_row = thread / 32 * 16;
  pair_arrives();
  Tile4BitScales<Shape> scales(args, memory, share, 0, rank * 128 + first_row, lane);
  fill_table<T, Shape>(args, memory);
  consumers_wait<Shape::threads>();
  pair_is_there();
  wait_for_previous_launch();  // which may still write y

  const TileArgs& line = args.tile;
  const uint32_t shared = shared_address(memory);
  Pair4BitProducts<T, Shape> products(shared, first_row, lane, share.end - share.at, scales);
  while (share.at < share.end) {
    const int tile = share.at / line.chunks, tile_end = (tile + 1) * line.chunks;
    const int piece_end = min(share.end, tile_end);
    const bool has_first = share.at == tile * line.chunks;
    const bool is_begun =
        !Shape::is_cut && has_first && piece_end < tile_end && begins_with_left(args, all, pair, pairs);
    products.clear();
    if (is_begun) PairPiece<Shape>(line, pair + 1, rank, group).begin(products.sums, group);
#pragma unroll 1
    for (int left = piece_end - share.at; left > 0; --left) products.multiply(scales);
    share.at = piece_end;
    products.finish();
    if constexpr (Shape::is_cut) {
      finish_cut_pair<Shape>(args, products.sums, tile, pair, rank, first_row, lane);
      return;
    }
    if (!has_first) {
      PairPiece<Shape>(line, pair, rank, group).leave(products.sums, group);
      continue;
    }
    if (!is_begun && piece_end < tile_end)
      for_left_pieces(args, all, pair, pairs, [&](int) { products.add_piece(group); });
    const int row_tile = tile / line.column_tiles;
    const DeviceJob& job = line.jobs.of_tile(row_tile);
    const int row = (row_tile - job.first_tile) * Shape::rows + rank * 128 + group * 64;
    const int column = tile % line.column_tiles * Shape::columns;
    store_group<Shape>(line, job, row, column, products.sums, shared, group);
  }
}

/// What the warps do that multiply nothing.
template <typename Shape>
__device__ __forceinline__ void serve_pairs(const Tile4BitArgs& args, uint32_t shared, int pair, int pairs, int rank) {
  const uint32_t full = shared + Shape::kBarriers, empty = full + 8 * Shape::kStages;
  const int thread = static_cast<int>(threadIdx.x) - Shape::threads;
  if (thread == 0) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<uint64_t>(&args.x)) : "memory");
    for (int s = 0; s < Shape::kStages; ++s) {
      barrier_init(full + 8 * s, 2);
      barrier_init(empty + 8 * s, (32 + 2) * Shape::warps);  // see release()
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncwarp();
  pair_waits();
  if (thread == 0) {
    bring_x<Shape>(args, shared, pair, pairs, rank);
  } else if (thread == 32) {
    TileWalk<Shape> at(args, share_of<Shape>(args, pair, pairs), rank);
    bring_codes(at, shared);
  } else if (!Shape::is_cut && thread >= 64) {
    const TileShare share(args, pair, pairs);
    const int group = thread / 32 - 2;
    if (share.at % args.tile.chunks != 0) PairPiece<Shape>(args.tile, pair, rank, group).tell(group);
    if (begins_with_left(args, share, pair, pairs)) {
      wait_for_previous_launch();  // whose flags may be the same
      PairPiece<Shape>(args.tile, pair + 1, rank, group).tell_begin(group);
    }
  }
}

/// Launched in clusters of two. Blocks of 64 or more, a power of two; cols a multiple of 64.
template <typename T, typename Shape>
__global__ void __launch_bounds__(Shape::all_threads, 1) pair_4bit_kernel(const __grid_constant__ Tile4BitArgs args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t tile_memory[];
  const uint32_t shared = shared_address(tile_memory);
  require_tile_shared(shared);
  const int rank = static_cast<int>(rank_in_pair());
  const int pairs = static_cast<int>(gridDim.x / 2), pair = pairs - 1 - static_cast<int>(blockIdx.x / 2);
  allow_next_launch();
  if (threadIdx.x >= Shape::threads) {  // a warp group of its own, so that the others can have its registers
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    serve_pairs<Shape>(args, shared, pair, pairs, rank);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    consume_pairs<T, Shape>(args, tile_memory, pair, pairs, rank);
  }
  __syncwarp();
  pair_waits();  // until then the other block may still reach into this one
#endif
}

}  // namespace nibble::kernels::cuda
