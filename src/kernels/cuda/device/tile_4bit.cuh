// 4-bit products for more rows of x than few_rows.cuh takes, on Hopper, in one launch: the copy engine brings x and the
// codes as they lie, each warp decodes its own weight rows into the registers that wgmma reads as its left side. All
// tiles' columns form one line that the blocks divide evenly, as in tile.cuh.
#pragma once

#include "kernels/cuda/device/absmax.cuh"
#include "kernels/cuda/device/weights_tile.cuh"
#include "kernels/cuda/device/wgmma_shared.cuh"

namespace nibble::kernels::cuda {

struct Tile4BitArgs {
  CUtensorMap x;                // (m, 2 * cols) bytes
  CUtensorMap codes[kMaxJobs];  // (rows, cols / 2) bytes
  TileArgs tile;
  float unscale;  // undoes the factor in tile.book
  bool is_nested;
};

/// A tile: kColumns rows of x by kSubs * 64 weight rows for each of kRowGroups warp groups; kDepthGroups share its
/// columns, a chunk each in turn. kLate: code book values are multiplied and absmax scales the sums of 64 columns,
/// which costs less for few rows of x; otherwise each weight is code book times absmax in fp32, rounded once.
template <bool kLate, int kColumns, int kSubs, int kRowGroups, int kDepthGroups>
struct Tile4BitShape {
  static constexpr bool is_late = kLate;
  static constexpr int columns = kColumns, subs = kSubs, row_groups = kRowGroups, depth_groups = kDepthGroups;
  static constexpr int rows = 64 * kSubs * kRowGroups;
  static constexpr int threads = 128 * kRowGroups * kDepthGroups;
  static constexpr int sums = kSubs * kColumns / 2;  // of a thread
  static constexpr int registers = threads == 256 ? 240 : threads == 384 ? 160 : threads == 512 ? 112 : 80;

  static constexpr int kTableRow = 256;  // so that one byte permutation makes an address; the other half holds sums
  static constexpr int kBook = 256 * kTableRow;
  static constexpr int kStage = kBook + kMaxJobs * 1024;  // the first: two boxes of x, one of codes
  static constexpr int kXBytes = kColumns * 128, kCodeBytes = rows * 64;
  static constexpr int kStageBytes = 2 * kXBytes + kCodeBytes;
  static constexpr int kRoom = (232192 - kStage) / kStageBytes;
  static constexpr int kStages = kRoom < 16 ? kRoom : 16;
  static constexpr int kBarriers = kStage + kStages * kStageBytes;
  static constexpr int kBytes = kBarriers + 2 * kStages * 8;
  static_assert(kStages >= kDepthGroups && kStages >= 2 && kBytes <= 232448);
  static_assert((kDepthGroups - 1) * kRowGroups * 128 * sums <= 256 * 32);
};

/// The line of tiles as one walks it.
struct TileCursor {
  int tile, chunk;

  __device__ TileCursor(const TileArgs& args, int64_t at)
      : tile(static_cast<int>(at / args.chunks)), chunk(static_cast<int>(at - int64_t{tile} * args.chunks)) {}

  /// True if in another tile.
  __device__ __forceinline__ bool advance(int count, int chunks) {
    chunk += count;
    bool is_other = false;
    while (chunk >= chunks) chunk -= chunks, ++tile, is_other = true;
    return is_other;
  }
};

/// One thread brings x and the codes, a chunk of both a stage.
template <typename Shape>
__device__ __forceinline__ void produce_boxes(const Tile4BitArgs& args, uint32_t shared) {
  const uint32_t full = shared + Shape::kBarriers, empty = full + 8 * Shape::kStages;
  const TileArgs& tile = args.tile;
  const TileRange range(tile, tile_block());
  const int count = static_cast<int>(range.end - range.at), at_once = min(count, Shape::kStages);
  const auto bring_codes = [&](const TileCursor& at, int stage) {
    const int row_tile = at.tile / tile.column_tiles;
    const DeviceJob& job = tile.jobs.of_tile(row_tile);
    barrier_expect(full + 8 * stage, Shape::kStageBytes);
    copy_box(shared + Shape::kStage + stage * Shape::kStageBytes + 2 * Shape::kXBytes,
             args.codes[&job - tile.jobs.jobs], at.chunk * 64, (row_tile - job.first_tile) * Shape::rows,
             full + 8 * stage);
  };
  TileCursor codes(tile, range.at), x = codes;
  for (int i = 0; i < at_once; ++i, codes.advance(1, tile.chunks)) bring_codes(codes, i);
  wait_for_previous_launch();
  int stage = 0;
  uint32_t parity = 1;
  for (int i = 0; i < count; ++i) {
    if (i >= at_once) {
      barrier_wait(empty + 8 * stage, parity);
      bring_codes(x, stage);
    }
    const uint32_t to = shared + Shape::kStage + stage * Shape::kStageBytes;
    const int row = x.tile % tile.column_tiles * Shape::columns;
    copy_box(to, args.x, x.chunk * 256, row, full + 8 * stage);
    copy_box(to + Shape::kXBytes, args.x, x.chunk * 256 + 128, row, full + 8 * stage);
    x.advance(1, tile.chunks);
    if (++stage == Shape::kStages) stage = 0, parity ^= 1;
  }
}

/// The scales of a warp's weight rows, under way in registers some chunks ahead: each lane brings one for a row and
/// half a chunk.
template <typename Shape>
class Tile4BitScales {
 public:
  __device__ Tile4BitScales(const Tile4BitArgs& args, const uint8_t* memory, const TileRange& range, int depth,
                            int first_row, int lane)
      : args_(args),
        book_(reinterpret_cast<const float*>(memory + Shape::kBook)),
        cursor_(args.tile, range.at),
        left_(static_cast<int>(range.end - range.at) - depth),
        first_row_(first_row),
        lane_(lane) {
    cursor_.advance(depth, args.tile.chunks);
    if (left_ > 0) enter_tile();
    for (Fetched& slot : ahead_) fetch(slot);
  }

  /// The next chunk's scales: [2 * half of the chunk + row, of the thread's two].
  __device__ __forceinline__ void take(float (&scales)[Shape::subs][4]) {
    const Fetched now = ahead_[0];
#pragma unroll
    for (int i = 1; i < kAhead; ++i) ahead_[i - 1] = ahead_[i];
    fetch(ahead_[kAhead - 1]);
#pragma unroll
    for (int sub = 0; sub < Shape::subs; ++sub) {
      float scale = now.value[sub];
      if (args_.is_nested)
        scale = nested_value(book_[now.job * 256 + now.code[sub]], scale,
                             args_.tile.jobs.jobs[now.job].weight.absmax.offset);
      scale *= args_.unscale;
#pragma unroll
      for (int i = 0; i < 4; ++i) scales[sub][i] = __shfl_sync(kFullMask, scale, lane_ / 4 + 8 * i);
    }
  }

 private:
  static constexpr int kAhead = Shape::subs == 1 ? 2 : 1;
  struct Fetched {
    float value[Shape::subs];
    uint32_t code[Shape::subs];
    uint32_t job;
  };

  __device__ __forceinline__ void fetch(Fetched& slot) {
    const int unit = cursor_.chunk * 2 + lane_ / 16;
    slot.job = job_;
#pragma unroll
    for (int sub = 0; sub < Shape::subs; ++sub) {
      slot.value[sub] = 0;
      slot.code[sub] = 0;
      if (left_ <= 0 || unit >= args_.tile.cols >> 6) continue;
      const uint32_t block = (rows_[sub] + static_cast<uint32_t>(unit)) >> unit_shift_;
      if (args_.is_nested) {
        slot.code[sub] = __ldg(codes_ + block);
        slot.value[sub] = __ldg(values_ + block / quant::kNestedBlock);
      } else {
        slot.value[sub] = __ldg(values_ + block);
      }
    }
    left_ -= Shape::depth_groups;
    if (cursor_.advance(Shape::depth_groups, args_.tile.chunks) && left_ > 0) enter_tile();
  }

  /// Keeps what is needed of the tile's job in registers.
  __device__ __forceinline__ void enter_tile() {
    const int row_tile = cursor_.tile / args_.tile.column_tiles;
    const DeviceJob& job = args_.tile.jobs.of_tile(row_tile);
    const int first = (row_tile - job.first_tile) * Shape::rows + first_row_ + lane_ % 16;
#pragma unroll
    for (int sub = 0; sub < Shape::subs; ++sub)
      rows_[sub] =
          static_cast<uint32_t>(min(first + sub * 64, job.rows - 1)) * static_cast<uint32_t>(args_.tile.cols >> 6);
    const Absmax& absmax = job.weight.absmax;
    values_ = args_.is_nested ? absmax.nested_absmax : absmax.values;
    codes_ = absmax.codes;
    unit_shift_ = static_cast<uint32_t>(job.weight.block_shift - 6);
    job_ = static_cast<uint32_t>(&job - args_.tile.jobs.jobs);
  }

  const Tile4BitArgs& args_;
  const float* book_;
  TileCursor cursor_;
  int left_, first_row_, lane_;
  Fetched ahead_[kAhead];
  uint32_t rows_[Shape::subs], unit_shift_ = 0, job_ = 0;  // rows_: in units of 64 columns from the weight's start
  const float* values_ = nullptr;
  const uint8_t* codes_ = nullptr;
};

template <typename T, typename Shape>
__device__ __forceinline__ void fill_table(const Tile4BitArgs& args, uint8_t* memory) {
  using Value = std::conditional_t<Shape::is_late, T, __half>;
  for (int i = threadIdx.x; i < 256 * 8; i += Shape::threads) {
    const int byte = i / 8, piece = (i + byte) % 8;  // rotated: neighbours write to different banks
    const uint32_t word = round_pair<Value>(args.tile.book[byte / 16], args.tile.book[byte % 16]);
    *reinterpret_cast<uint4*>(memory + byte * Shape::kTableRow + piece * 16) = make_uint4(word, word, word, word);
  }
  if (!args.is_nested) return;
  for (int i = threadIdx.x; i < 256 * args.tile.jobs.count; i += Shape::threads)
    reinterpret_cast<float*>(memory + Shape::kBook)[i] =
        args.tile.jobs.jobs[i / 256].weight.absmax.nested_code_book[i % 256];
}

/// The products of one warp's rows. Two sets of fragments take turns, so that one is decoded while the other is
/// multiplied.
template <typename T, typename Shape>
class Tile4BitProducts {
 public:
  float sums[Shape::sums];

  __device__ Tile4BitProducts(uint32_t shared, int depth, int first_row, int lane)
      : x_(swizzled_operand(shared + Shape::kStage)),
        codes_(shared + Shape::kStage + 2 * Shape::kXBytes + (first_row + lane / 4) * 64),
        full_(shared + Shape::kBarriers),
        swizzle_(lane / 8 * 16),
        place_(4 * lane),
        selector_(0x5504 | lane % 4 << 4),
        stage_(depth) {}

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (float& sum : sums) sum = 0;
    if constexpr (Shape::is_late) {
#pragma unroll
      for (int sub = 0; sub < Shape::subs; ++sub) {
        last_[sub][0] = last_[sub][1] = 0;
#pragma unroll
        for (float& value : blocks_[sub]) value = 0;
      }
    }
  }

  /// One chunk.
  __device__ __forceinline__ void multiply(Tile4BitScales<Shape>& scales) {
    scales.take(scales_);
    barrier_wait(full_ + 8 * stage_, parity_);
    unit<0, 0>();
    if constexpr (Shape::subs == 2) unit<1, 0>();
    unit<0, 1>();
    if constexpr (Shape::subs == 2) unit<1, 1>();
    to_release_ = full_ + 8 * (Shape::kStages + stage_);
    stage_ += Shape::depth_groups;
    if (stage_ >= Shape::kStages) stage_ -= Shape::kStages, parity_ ^= 1;
  }

  /// Until the sums are there.
  __device__ __forceinline__ void finish() {
    wgmma_wait<0>();
    release();
    to_release_ = 0;
    if constexpr (Shape::is_late) {
      add_block<0>();
      if constexpr (Shape::subs == 2) add_block<1>();
    }
  }

 private:
  /// 64 columns of 64 rows.
  template <int kSub, int kStep>
  __device__ __forceinline__ void unit() {
    constexpr int kSet = Shape::subs == 2 ? kSub : kStep;
    if constexpr (Shape::is_late && Shape::subs == 2) settle<kSub, kStep>();
    decode<kSub, kStep>(fragments_[kSet]);
    if constexpr (Shape::is_late && Shape::subs == 1) settle<kSub, kStep>();
    wgmma_fence();
    const uint64_t x = x_ + static_cast<uint32_t>(stage_ * (Shape::kStageBytes / 16) + kStep * (Shape::kXBytes / 16));
    using Product = Wgmma<T, Shape::columns>;
    if constexpr (Shape::is_late) {
      Product::template multiply<false>(blocks_[kSub], fragments_[kSet][0], x);
#pragma unroll
      for (int step = 1; step < 4; ++step) Product::multiply(blocks_[kSub], fragments_[kSet][step], x + 2 * step);
    } else {
      auto& d = reinterpret_cast<float(&)[Shape::columns / 2]>(sums[kSub * Shape::columns / 2]);
#pragma unroll
      for (int step = 0; step < 4; ++step) Product::multiply(d, fragments_[kSet][step], x + 2 * step);
    }
    wgmma_commit();
    if constexpr (Shape::is_late) {
      last_[kSub][0] = scales_[kSub][2 * kStep];
      last_[kSub][1] = scales_[kSub][2 * kStep + 1];
    } else {
      wgmma_wait<1>();  // the unit before: its fragments, and with the last one its stage, are free
      if constexpr (kSub == 0 && kStep == 0) release();
    }
  }

  /// Adds this sub's block before, when its products are there.
  template <int kSub, int kStep>
  __device__ __forceinline__ void settle() {
    wgmma_wait<Shape::subs - 1>();
    if constexpr (kSub == Shape::subs - 1 && kStep == 0) release();
    add_block<kSub>();
  }

  template <int kSub>
  __device__ __forceinline__ void add_block() {
#pragma unroll
    for (int i = 0; i < Shape::columns / 2; ++i) {
      float& sum = sums[kSub * Shape::columns / 2 + i];
      sum = fmaf(last_[kSub][i % 4 / 2], blocks_[kSub][i], sum);
    }
  }

  template <int kSub, int kStep>
  __device__ __forceinline__ void decode(uint32_t (&fragments)[4][4]) const {
    const uint32_t at = codes_ + stage_ * Shape::kStageBytes + kSub * 4096;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint4 codes = load_shared_16(at + 512 * r + ((2 * kStep + i) * 16 ^ swizzle_));
        const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
        for (int j = 0; j < 4; ++j)
          fragments[2 * i + j / 2][r + 2 * (j % 2)] = look_up(words[j], scales_[kSub][2 * kStep + r]);
      }
  }

  /// The two values of this lane's byte.
  __device__ __forceinline__ uint32_t look_up(uint32_t word, float scale) const {
    extern __shared__ __align__(1024) uint8_t tile_memory[];
    const uint32_t pair = *reinterpret_cast<const uint32_t*>(tile_memory + __byte_perm(word, place_, selector_));
    if constexpr (Shape::is_late) return pair;
    const float2 values = __half22float2(reinterpret_cast<const __half2&>(pair));
    return round_pair<T>(__fmul_rn(values.x, scale), __fmul_rn(values.y, scale));
  }

  __device__ __forceinline__ void release() const {
    if (to_release_ && place_ == 0) barrier_arrive(to_release_);
  }

  uint32_t fragments_[2][4][4];
  float scales_[Shape::subs][4];
  float blocks_[Shape::is_late ? Shape::subs : 1][Shape::is_late ? Shape::columns / 2 : 1];
  float last_[Shape::is_late ? Shape::subs : 1][2];  // scales of blocks_
  uint64_t x_;                                       // the operand in the first stage
  uint32_t codes_, full_, swizzle_, place_, selector_;
  uint32_t parity_ = 0, to_release_ = 0;
  int stage_;
};

template <int kThreads>
__device__ __forceinline__ void all_consumers_wait() {
  asm volatile("bar.sync 2, %0;" ::"n"(kThreads) : "memory");
}

/// Adds the depth groups' sums in their order into those of the first, through the table's unused halves.
template <typename Shape>
__device__ __forceinline__ void add_depths(float (&sums)[Shape::sums], uint8_t* memory, int depth) {
  const int thread = static_cast<int>(threadIdx.x) % (Shape::row_groups * 128);
  uint8_t* first = memory + thread / 32 * Shape::kTableRow + 128 + thread % 32 * 4;
  const auto at = [&](int d, int i) {
    return reinterpret_cast<float*>(first + ((d - 1) * Shape::sums + i) * (Shape::row_groups * 4 * Shape::kTableRow));
  };
  all_consumers_wait<Shape::threads>();  // the sums of the piece before have been read
  if (depth > 0)
#pragma unroll
    for (int i = 0; i < Shape::sums; ++i) *at(depth, i) = sums[i];
  all_consumers_wait<Shape::threads>();
  if (depth == 0)
#pragma unroll
    for (int d = 1; d < Shape::depth_groups; ++d)
#pragma unroll
      for (int i = 0; i < Shape::sums; ++i) sums[i] += *at(d, i);
}

/// A piece's sums to where they go: to the block that has the tile's first piece, which stores the tile.
template <typename Shape>
__device__ __forceinline__ void finish_piece(const TileArgs& args, float (&sums)[Shape::sums], int64_t tile,
                                             bool has_first, int64_t piece_end, int first_row, int lane) {
  constexpr int kThreads = Shape::row_groups * 128;
  const int block = tile_block();
  if (!has_first) {
    leave_partial<kThreads>(args, sums, block);
    return;
  }
  add_partials<kThreads>(args, sums, block, piece_end, (tile + 1) * args.chunks);
  const int row_tile = static_cast<int>(tile / args.column_tiles);
  const DeviceJob& job = args.jobs.of_tile(row_tile);
  const int row = (row_tile - job.first_tile) * Shape::rows + first_row + lane / 4;
  const int first = static_cast<int>(tile % args.column_tiles) * Shape::columns + 2 * (lane % 4);
#pragma unroll
  for (int sub = 0; sub < Shape::subs; ++sub)
    store_sums(args, job, row + sub * 64, first,
               reinterpret_cast<const float(&)[Shape::columns / 2]>(sums[sub * Shape::columns / 2]),
               [](float sum, int, int) { return sum; });
}

template <typename T, typename Shape>
__device__ __forceinline__ void consume_4bit(const Tile4BitArgs& args, uint8_t* memory) {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));  // read once: it costs more than a register
  const int depth = thread / (Shape::row_groups * 128), lane = thread % 32;
  const int first_row = thread / 128 % Shape::row_groups * Shape::subs * 64 + thread / 32 % 4 * 16;
  TileRange range(args.tile, tile_block());
  Tile4BitScales<Shape> scales(args, memory, range, depth, first_row, lane);
  fill_table<T, Shape>(args, memory);
  wait_for_previous_launch();
  all_consumers_wait<Shape::threads>();

  Tile4BitProducts<T, Shape> products(shared_address(memory), depth, first_row, lane);
  int64_t own = range.at + depth;
  while (range.at < range.end) {
    const int64_t tile = range.at / args.tile.chunks;
    const int64_t piece_end = min(range.end, (tile + 1) * args.tile.chunks);
    const bool has_first = range.at == tile * args.tile.chunks;
    products.clear();
#pragma unroll 1
    for (; own < piece_end; own += Shape::depth_groups) products.multiply(scales);
    products.finish();
    if constexpr (Shape::depth_groups > 1) add_depths<Shape>(products.sums, memory, depth);
    if (depth == 0) finish_piece<Shape>(args.tile, products.sums, tile, has_first, piece_end, first_row, lane);
    range.at = piece_end;
  }
}

/// Blocks of 64 or more, a power of two; cols a multiple of 64.
template <typename T, typename Shape>
__global__ void __launch_bounds__(Shape::threads + 128, 1) tile_4bit_kernel(const __grid_constant__ Tile4BitArgs args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t tile_memory[];
  const uint32_t shared = shared_address(tile_memory);
  const uint32_t full = shared + Shape::kBarriers, empty = full + 8 * Shape::kStages;
  allow_next_launch();
  if (threadIdx.x == 0) {
    for (int s = 0; s < Shape::kStages; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, Shape::row_groups * 4);  // the warps that read one stage
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x >= Shape::threads) {  // a warp group of its own, so that the others can have its registers
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == Shape::threads) produce_boxes<Shape>(args, shared);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Shape::registers));
    consume_4bit<T, Shape>(args, tile_memory);
  }
#endif
}

}  // namespace nibble::kernels::cuda
