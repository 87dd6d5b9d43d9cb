// What the 4-bit tile kernels have in common: arguments, the walk along the line of tiles, scales on their way, the
// table of value pairs.
#pragma once

#include "kernels/cuda/device/absmax.cuh"
#include "kernels/cuda/device/activation.cuh"
#include "kernels/cuda/device/weights_tile.cuh"
#include "kernels/cuda/device/wgmma_shared.cuh"

namespace nibble::kernels::cuda {

struct Tile4BitArgs {
  CUtensorMap x;                // (m, 2 * cols) bytes
  CUtensorMap codes[kMaxJobs];  // (rows, cols / 2) bytes
  TileArgs tile;
  float unscale;  // undoes the factor in tile.book
  int extra;      // what the end of a tile costs, in chunks
  bool is_nested;
  Activation activation;  // gated_out = activation(gate) * up
  MatmulOutput gated_out;
  int cuts;  // of cut_4bit.cuh: pieces of equal depth that each tile has
};

/// The chunks of the line of tiles that one block, or one pair of them, works on. The line has args.extra chunks more
/// at each tile's begin, so that who finishes tiles has less of them; fewer than 2^31 in all.
struct TileShare {
  int at, end;

  __device__ TileShare(const Tile4BitArgs& args, int block, int blocks) {
    const auto tile = static_cast<uint32_t>(args.tile.chunks + args.extra);
    const uint32_t all = static_cast<uint32_t>(args.tile.jobs.tiles * args.tile.column_tiles) * tile;
    const uint32_t each = all / static_cast<uint32_t>(blocks), rest = all - each * static_cast<uint32_t>(blocks);
    const auto chunk_at = [&](uint32_t n) {
      const uint32_t place = n * each + min(n, rest);
      if (args.extra == 0) return static_cast<int>(place);
      const uint32_t t = place / tile;
      return static_cast<int>(t) * args.tile.chunks + max(static_cast<int>(place - t * tile) - args.extra, 0);
    };
    at = chunk_at(static_cast<uint32_t>(block));
    end = chunk_at(static_cast<uint32_t>(block) + 1);
  }
  __device__ TileShare(int at_, int end_) : at(at_), end(end_) {}
};

/// The same where every tile is in args.cuts pieces.
template <typename Shape>
__device__ __forceinline__ TileShare share_of(const Tile4BitArgs& args, int block, int blocks) {
  if constexpr (!Shape::is_cut) return TileShare(args, block, blocks);
  const int tile = block / args.cuts, cut = block - tile * args.cuts, chunks = args.tile.chunks;
  return {tile * chunks + chunks * cut / args.cuts, tile * chunks + chunks * (cut + 1) / args.cuts};
}

/// In a cluster the block's rank stands here, above kSharedBegin, of every address but a product's operands.
inline constexpr uint32_t kRankBits = 0xff000000;

__device__ __forceinline__ void require_tile_shared(uint32_t shared) {
  if ((shared & ~kRankBits) != kSharedBegin) __trap();
}

/// The two values of a byte whose place in the table is `at`; the table does not change, so that these loads may move.
__device__ __forceinline__ uint32_t table_pair(uint32_t at) {
  uint32_t pair;
  asm("ld.shared.u32 %0, [%1 + %2];" : "=r"(pair) : "r"(at), "n"(kSharedBegin));
  return pair;
}

/// The right side of a product, from its place as swizzled_operand() has it in the lower half.
__device__ __forceinline__ uint64_t operand_at(uint32_t place) {
  constexpr uint64_t kRest = swizzled_operand(0) >> 32;
  return kRest << 32 | place;
}

/// Walks the line of tiles, Shape::steps to a chunk, for a thread that brings something of each; what stays the same
/// within a tile is worked out once.
template <typename Shape>
class TileWalk {
 public:
  int left;      // steps
  int step;      // of the tile
  int x_row;     // of this block's part
  int code_row;  // of this block's rows
  const CUtensorMap* codes;

  /// rank: of the block among the Shape::cluster that share the tile.
  __device__ TileWalk(const Tile4BitArgs& args, const TileShare& share, int rank) : args_(args), rank_(rank) {
    const int tile = share.at / args.tile.chunks;
    left = Shape::steps * (share.end - share.at);
    step = Shape::steps * (share.at - tile * args.tile.chunks);
    row_tile_ = tile / args.tile.column_tiles;
    column_tile_ = tile - row_tile_ * args.tile.column_tiles;
    if (left > 0) enter();
  }

  __device__ __forceinline__ void advance() {
    --left;
    if (++step < Shape::steps * args_.tile.chunks) return;
    step = 0;
    if (++column_tile_ == args_.tile.column_tiles) column_tile_ = 0, ++row_tile_;
    if (left > 0) enter();
  }

 private:
  __device__ __forceinline__ void enter() {
    const DeviceJob& job = args_.tile.jobs.of_tile(row_tile_);
    codes = args_.codes + (&job - args_.tile.jobs.jobs);
    constexpr int rows = Shape::is_gated ? Shape::rows / 2 : Shape::rows;
    code_row = (row_tile_ - job.first_tile) * rows + rank_ * (Shape::rows / Shape::cluster);
    x_row = column_tile_ * Shape::columns + rank_ * (Shape::columns / Shape::cluster);
  }

  const Tile4BitArgs& args_;
  int rank_, row_tile_, column_tile_;
};

/// The scales of a warp's weight rows, under way in registers two of its chunks ahead: each lane brings one for a row
/// and half a chunk. A warp takes every Shape::depth_groups-th chunk.
template <typename Shape>
class Tile4BitScales {
 public:
  /// first_row: of the warp, in a tile; eight from there and eight Shape::lower on.
  __device__ Tile4BitScales(const Tile4BitArgs& args, const uint8_t* memory, const TileShare& share, int depth,
                            int first_row, int lane)
      : args_(args),
        book_(reinterpret_cast<const float*>(memory + Shape::kBook)),
        left_(share.end - share.at - depth),
        tile_((share.at + depth) / args.tile.chunks),
        first_row_(first_row),
        lane_(lane) {
    if (left_ > 0) enter_tile(share.at + depth - tile_ * args.tile.chunks);
#pragma unroll
    for (Fetched& slot : ahead_) fetch(slot);
  }

  /// The next chunk's scales: [2 * half of the chunk + row, of the thread's two].
  __device__ __forceinline__ void take(float (&scales)[4]) {
    look_up();
    take_looked_up(scales);
  }

  /// What take() reads of shared memory, to be on its way while something else is done.
  __device__ __forceinline__ void look_up() {
    if (!args_.is_nested) return;
    looked_up_ = book_[256 * ahead_[0].job + ahead_[0].code];
    offset_ = args_.tile.jobs.jobs[ahead_[0].job].weight.absmax.offset;
  }

  __device__ __forceinline__ void take_looked_up(float (&scales)[4]) {
    float scale = ahead_[0].value;
    if (args_.is_nested) scale = nested_value(looked_up_, scale, offset_);
    ahead_[0] = ahead_[1];
    fetch(ahead_[1]);
    scale *= args_.unscale;
#pragma unroll
    for (int i = 0; i < 4; ++i) scales[i] = __shfl_sync(kFullMask, scale, lane_ / 4 + 8 * i);
  }

 private:
  /// Nothing is computed of what is loaded before it is taken: that would wait for it.
  struct Fetched {
    float value;
    uint32_t code, job;
  };

  __device__ __forceinline__ void fetch(Fetched& slot) {
    slot.value = 0;
    slot.code = 0;
    slot.job = job_;
    if (left_ > 0 && unit_ < args_.tile.cols >> 6) {
      const uint32_t block = (row_ + static_cast<uint32_t>(unit_)) >> unit_shift_;
      if (args_.is_nested) {
        slot.code = __ldg(codes_ + block);
        slot.value = __ldg(values_ + block / quant::kNestedBlock);
      } else {
        slot.value = __ldg(values_ + block);
      }
    }
    unit_ += 2 * Shape::depth_groups;
    left_ -= Shape::depth_groups;
    if (left_ <= 0 || unit_ < 2 * args_.tile.chunks) return;
    int chunk = unit_ / 2;
    do chunk -= args_.tile.chunks, ++tile_;
    while (chunk >= args_.tile.chunks);
    enter_tile(chunk);
  }

  /// Keeps what is needed of the tile's job in registers.
  __device__ __forceinline__ void enter_tile(int chunk) {
    const int row_tile = tile_ / args_.tile.column_tiles, lower = lane_ / 8 % 2;
    const DeviceJob& job = Shape::is_gated ? args_.tile.jobs.jobs[lower] : args_.tile.jobs.of_tile(row_tile);
    const int in_tile = first_row_ + (Shape::is_gated ? lane_ % 8 : lane_ % 16);
    const int first = Shape::is_gated ? row_tile * Shape::lower : (row_tile - job.first_tile) * Shape::rows;
    const int row = min(first + in_tile, job.rows - 1);
    row_ = static_cast<uint32_t>(row) * static_cast<uint32_t>(args_.tile.cols >> 6);
    unit_ = 2 * chunk + lane_ / 16;
    const Absmax& absmax = job.weight.absmax;
    values_ = args_.is_nested ? absmax.nested_absmax : absmax.values;
    codes_ = absmax.codes;
    unit_shift_ = static_cast<uint32_t>(job.weight.block_shift - 6);
    job_ = static_cast<uint32_t>(&job - args_.tile.jobs.jobs);
  }

  const Tile4BitArgs& args_;
  const float* book_;
  int left_, tile_, first_row_, lane_, unit_ = 0;  // unit_: of 64 columns, in a row
  Fetched ahead_[2];
  float looked_up_ = 0, offset_ = 0;             // for ahead_[0]
  uint32_t row_ = 0, unit_shift_ = 0, job_ = 0;  // row_: in such units from the weight's start
  const float* values_ = nullptr;
  const uint8_t* codes_ = nullptr;
};

template <typename T, typename Shape>
__device__ __forceinline__ void fill_table(const Tile4BitArgs& args, uint8_t* memory) {
  using Value = std::conditional_t<Shape::is_late, T, __half>;
  constexpr int kLoads = 256 * kMaxJobs / Shape::threads;
  float nested[kLoads];  // under way while the table is filled
#pragma unroll
  for (int j = 0; j < kLoads; ++j) {
    const int i = static_cast<int>(threadIdx.x) + j * Shape::threads;
    if (args.is_nested && i < 256 * args.tile.jobs.count)
      nested[j] = __ldg(args.tile.jobs.jobs[i / 256].weight.absmax.nested_code_book + i % 256);
  }
  for (int i = threadIdx.x; i < 256 * 8; i += Shape::threads) {
    const int byte = i / 8, piece = (i + byte) % 8;  // rotated: neighbours write to different banks
    const uint32_t word = round_pair<Value>(args.tile.book[byte / 16], args.tile.book[byte % 16]);
    *reinterpret_cast<uint4*>(memory + byte * Shape::kTableRow + piece * 16) = make_uint4(word, word, word, word);
  }
#pragma unroll
  for (int j = 0; j < kLoads; ++j) {
    const int i = static_cast<int>(threadIdx.x) + j * Shape::threads;
    if (args.is_nested && i < 256 * args.tile.jobs.count)
      reinterpret_cast<float*>(memory + Shape::kBook)[i] = nested[j];
  }
}

}  // namespace nibble::kernels::cuda
