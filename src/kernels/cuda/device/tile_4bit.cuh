// 4-bit products for more rows of x than few_rows.cuh takes, on Hopper, in one launch: the copy engine brings x and the
// codes as they lie, each warp decodes its own weight rows into the registers that wgmma reads as its left side. All
// tiles' columns form one line that the blocks divide evenly, as in tile.cuh.
#pragma once

#include "kernels/cuda/device/cut_4bit.cuh"

namespace nibble::kernels::cuda {

/// A tile: kColumns rows of x by 64 weight rows for each of kRowGroups warp groups; kDepthGroups share its columns, a
/// chunk each in turn. kLate: code book values are multiplied and absmax scales the sums of 64 columns, which costs
/// less for few rows of x; otherwise each weight is code book times absmax in fp32, rounded once. kBlocks share a
/// multiprocessor, so that one launch's end and the next one's start can overlap. kGated: a tile is as many rows of
/// gate (job 0) as of up (job 1), a thread's two rows the same one of both. kCut: as cut_4bit.cuh has it.
template <bool kLate, int kColumns, int kRowGroups, int kDepthGroups, int kBlocks, bool kGated = false,
          bool kCut = false>
struct Tile4BitShape {
  static constexpr bool is_late = kLate;
  static constexpr int columns = kColumns, row_groups = kRowGroups, depth_groups = kDepthGroups, blocks = kBlocks;
  static constexpr bool is_gated = kGated, is_cut = kCut;
  static constexpr int cluster = 1, steps = 1;
  static constexpr int rows = 64 * kRowGroups;
  static constexpr int lower = kGated ? rows / 2 : 8;  // from a thread's first row to its second
  static constexpr int threads = 128 * kRowGroups * kDepthGroups;
  static constexpr int all_threads = threads + (kBlocks == 1 ? 128 : 32);
  static constexpr int sums = kColumns / 2;  // of a thread
  static constexpr int extra = 0;
  static constexpr int registers = threads == 256 ? 240 : 112;

  static constexpr int kTableRow = 256;  // so that one byte permutation makes an address; the other half holds sums
  static constexpr int kBook = 256 * kTableRow;
  static constexpr int kStage = kBook + kMaxJobs * 1024;  // the first: two boxes of x, one of codes
  static constexpr int kXBytes = kColumns * 128, kCodeBytes = rows * 64;
  static constexpr int kStageBytes = 2 * kXBytes + kCodeBytes;
  static constexpr int kLimit = 233472 / kBlocks - 1024;
  static constexpr int kRoom = (kLimit - 256 - kStage) / kStageBytes;
  static constexpr int kStages = kRoom < 16 ? kRoom : 16;
  static constexpr int kBarriers = kStage + kStages * kStageBytes;
  static constexpr int kBytes = kBarriers + 2 * kStages * 8;
  static_assert(kStages >= kDepthGroups && kStages >= 2 && kBytes <= kLimit && kStageBytes % 1024 == 0);
  static_assert((kDepthGroups - 1) * kRowGroups * 128 * sums <= 256 * 32);
};

template <typename Shape>
__device__ __forceinline__ TileShare share_of_block(const Tile4BitArgs& args) {
  return share_of<Shape>(args, tile_block(), static_cast<int>(gridDim.x));
}

template <typename Shape>
__device__ __forceinline__ void begin_stage(const Tile4BitArgs& args, const TileWalk<Shape>& at, uint32_t shared,
                                            int stage) {
  const uint32_t full = shared + Shape::kBarriers + 8 * stage;
  barrier_expect(full, Shape::kStageBytes);
  const uint32_t to = shared + Shape::kStage + stage * Shape::kStageBytes + 2 * Shape::kXBytes;
  copy_box(to, *at.codes, at.step * 64, at.code_row, full);
  if constexpr (Shape::is_gated) copy_box(to + Shape::kCodeBytes / 2, args.codes[1], at.step * 64, at.code_row, full);
}

/// One thread makes the barriers and brings the first stages' codes.
template <typename Shape>
__device__ __forceinline__ void start_boxes(const Tile4BitArgs& args, uint32_t shared) {
  const uint32_t full = shared + Shape::kBarriers, empty = full + 8 * Shape::kStages;
  for (int s = 0; s < Shape::kStages; ++s) {
    barrier_init(full + 8 * s, 1);
    barrier_init(empty + 8 * s, Shape::row_groups * 4);  // the warps that read one stage
  }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  TileWalk<Shape> codes(args, share_of_block<Shape>(args), 0);
  for (int stage = 0; stage < Shape::kStages && codes.left > 0; ++stage, codes.advance())
    begin_stage(args, codes, shared, stage);
}

/// The same thread brings x and the other codes, a chunk of both a stage.
template <typename Shape>
__device__ __forceinline__ void produce_boxes(const Tile4BitArgs& args, uint32_t shared) {
  const uint32_t full = shared + Shape::kBarriers, empty = full + 8 * Shape::kStages;
  TileWalk<Shape> at(args, share_of_block<Shape>(args), 0);
  wait_for_previous_launch();
  int stage = 0;
  uint32_t parity = 1;
  for (int i = 0; at.left > 0; ++i, at.advance()) {
    if (i >= Shape::kStages) {
      barrier_wait(empty + 8 * stage, parity);
      begin_stage(args, at, shared, stage);
    }
    const uint32_t to = shared + Shape::kStage + stage * Shape::kStageBytes;
    copy_box(to, args.x, at.step * 256, at.x_row, full + 8 * stage);
    copy_box(to + Shape::kXBytes, args.x, at.step * 256 + 128, at.x_row, full + 8 * stage);
    if (++stage == Shape::kStages) stage = 0, parity ^= 1;
  }
}

/// The products of one warp's rows. Two sets of fragments take turns, so that one is decoded while the other is
/// multiplied.
template <typename T, typename Shape>
class Tile4BitProducts {
 public:
  float sums[Shape::sums];

  __device__ Tile4BitProducts(uint32_t shared, int depth, int first_row, int lane)
      : x_(static_cast<uint32_t>(swizzled_operand(shared + Shape::kStage))),
        codes_(shared + Shape::kStage + 2 * Shape::kXBytes + (first_row + lane / 4) * 64),
        full_(shared + Shape::kBarriers),
        swizzle_(lane / 8 * 16),
        place_(4 * lane),
        selector_(0x5504 | lane % 4 << 4),
        stage_(depth) {}

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (float& sum : sums) sum = 0;
  }

  /// One chunk.
  __device__ __forceinline__ void multiply(Tile4BitScales<Shape>& scales) {
    if constexpr (!Shape::is_late) scales.take(scales_);
    barrier_wait(full_ + 8 * stage_, parity_);
    const uint32_t empty = full_ + 8 * (Shape::kStages + stage_);
    if constexpr (Shape::is_late) {  // nothing is under way from one chunk to the next: other warps fill the time
      float blocks[2][Shape::sums];
      decode<0>(fragments_[0]);
      start_block<0>(blocks[0]);
      if constexpr (Shape::columns <= 32) decode<1>(fragments_[1]);
      if constexpr (Shape::columns <= 16) start_block<1>(blocks[1]);
      scales.take(scales_);
      add_block<0, Shape::columns <= 16 ? 1 : 0>(blocks[0]);
      if constexpr (Shape::columns > 32) decode<1>(fragments_[1]);  // what is under way has to fit the registers
      if constexpr (Shape::columns > 16) start_block<1>(blocks[1]);
      add_block<1, 0>(blocks[1]);
      if (place_ == 0) barrier_arrive(empty);
    } else {
      unit<0>();
      unit<1>();
      to_release_ = empty;
    }
    stage_ += Shape::depth_groups;
    if (stage_ >= Shape::kStages) stage_ -= Shape::kStages, parity_ ^= 1;
  }

  /// Until the sums are there.
  __device__ __forceinline__ void finish() {
    if constexpr (Shape::is_late) return;
    wgmma_wait<0>();
    release();
    to_release_ = 0;
  }

 private:
  using Product = Wgmma<T, Shape::columns>;

  __device__ __forceinline__ uint64_t x_operand(int half, int step) const {
    return operand_at(x_ + static_cast<uint32_t>(stage_ * (Shape::kStageBytes / 16)) + half * (Shape::kXBytes / 16) +
                      2 * step);
  }

  /// Half a chunk.
  template <int kHalf>
  __device__ __forceinline__ void unit() {
    decode<kHalf>(fragments_[kHalf]);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < 4; ++step) Product::multiply(sums, fragments_[kHalf][step], x_operand(kHalf, step));
    wgmma_commit();
    wgmma_wait<1>();  // the half before: its fragments, and with the last one its stage, are free
    if constexpr (kHalf == 0) release();
  }

  /// The same, not yet scaled.
  template <int kHalf>
  __device__ __forceinline__ void start_block(float (&block)[Shape::sums]) {
    wgmma_fence();
    Product::template multiply<false>(block, fragments_[kHalf][0], x_operand(kHalf, 0));
#pragma unroll
    for (int step = 1; step < 4; ++step) Product::multiply(block, fragments_[kHalf][step], x_operand(kHalf, step));
    wgmma_commit();
  }

  /// kPending: started since.
  template <int kHalf, int kPending>
  __device__ __forceinline__ void add_block(const float (&block)[Shape::sums]) {
    wgmma_wait<kPending>();
#pragma unroll
    for (int i = 0; i < Shape::sums; ++i) sums[i] = fmaf(scales_[2 * kHalf + i % 4 / 2], block[i], sums[i]);
  }

  template <int kHalf>
  __device__ __forceinline__ void decode(uint32_t (&fragments)[4][4]) const {
    const uint32_t at = codes_ + stage_ * Shape::kStageBytes;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint4 codes = load_shared_16(at + 64 * Shape::lower * r + ((2 * kHalf + i) * 16 ^ swizzle_));
        const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
        for (int j = 0; j < 4; ++j)
          fragments[2 * i + j / 2][r + 2 * (j % 2)] = look_up(words[j], scales_[2 * kHalf + r]);
      }
  }

  /// The two values of this lane's byte.
  __device__ __forceinline__ uint32_t look_up(uint32_t word, float scale) const {
    const uint32_t pair = table_pair(__byte_perm(word, place_, selector_));
    if constexpr (Shape::is_late) return pair;
    const float2 values = __half22float2(reinterpret_cast<const __half2&>(pair));
    return round_pair<T>(__fmul_rn(values.x, scale), __fmul_rn(values.y, scale));
  }

  __device__ __forceinline__ void release() const {
    if (to_release_ && place_ == 0) barrier_arrive(to_release_);
  }

  uint32_t fragments_[2][4][4];
  float scales_[4];
  uint32_t x_;  // the operand in the first stage
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

/// Gate and up of the same rows are a thread's two.
template <typename Shape>
__device__ __forceinline__ void store_gated(const Tile4BitArgs& args, const float (&sums)[Shape::sums], int row,
                                            int first) {
  const DeviceJob* jobs = args.tile.jobs.jobs;
  if (row >= jobs[0].rows) return;
  const float gate_bias = jobs[0].out.bias ? jobs[0].out.bias[row] : 0.0f;
  const float up_bias = jobs[1].out.bias ? jobs[1].out.bias[row] : 0.0f;
#pragma unroll
  for (int j = 0; j < Shape::sums / 4; ++j)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int i = first + 8 * j + c;
      if (i < args.tile.m)
        put(args.gated_out, i, row,
            activated(args.activation, sums[4 * j + c] + gate_bias) * (sums[4 * j + 2 + c] + up_bias));
    }
}

/// A piece's sums to where they go: to the block that has the tile's first piece, which stores the tile.
template <typename Shape>
__device__ __forceinline__ void finish_piece(const Tile4BitArgs& args, float (&sums)[Shape::sums], int tile,
                                             bool has_first, int piece_end, int first_row, int lane) {
  constexpr int kThreads = Shape::row_groups * 128;
  const TileArgs& line = args.tile;
  const int block = tile_block();
  if constexpr (Shape::is_cut) {
    const int row_tile = tile / line.column_tiles;
    const DeviceJob& job = line.jobs.of_tile(row_tile);
    return finish_cut_tile<kThreads>(args, {block, block % args.cuts, 1}, job,
                                     (row_tile - job.first_tile) * Shape::rows + first_row + lane / 4,
                                     tile % line.column_tiles * Shape::columns + 2 * (lane % 4), sums);
  }
  if (!has_first) {
    leave_partial<kThreads>(line, sums, block);
    return;
  }
  add_partials<kThreads>(line, sums, block, piece_end, (tile + 1) * line.chunks,
                         [&](int next) { return TileShare(args, next, static_cast<int>(gridDim.x)).end; });
  const int row_tile = tile / line.column_tiles;
  const int first = tile % line.column_tiles * Shape::columns + 2 * (lane % 4);
  if constexpr (Shape::is_gated)
    return store_gated<Shape>(args, sums, row_tile * Shape::lower + first_row + lane / 4, first);
  const DeviceJob& job = line.jobs.of_tile(row_tile);
  const int row = (row_tile - job.first_tile) * Shape::rows + first_row + lane / 4;
  store_sums(line, job, row, first, sums, [](float sum, int, int) { return sum; });
}

/// What the warps that multiply wait for, besides each other: the barriers that the copying warps made.
template <typename Shape>
__device__ __forceinline__ void start_waits() {
  asm volatile("bar.sync 3, %0;" ::"n"(Shape::all_threads) : "memory");
}

template <typename Shape>
__device__ __forceinline__ void boxes_started() {
  asm volatile("bar.arrive 3, %0;" ::"n"(Shape::all_threads) : "memory");
}

template <typename T, typename Shape>
__device__ __forceinline__ void consume_4bit(const Tile4BitArgs& args, uint8_t* memory) {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));  // read once: it costs more than a register
  const int depth = Shape::depth_groups == 1 ? 0 : thread / (Shape::row_groups * 128), lane = thread % 32;
  const int warp = thread / 32 % (4 * Shape::row_groups), first_row = warp * (Shape::is_gated ? 8 : 16);
  TileShare share = share_of_block<Shape>(args);
  Tile4BitScales<Shape> scales(args, memory, share, depth, first_row, lane);
  fill_table<T, Shape>(args, memory);
  start_waits<Shape>();
  wait_for_previous_launch();  // which may still write y

  Tile4BitProducts<T, Shape> products(kSharedBegin, depth, first_row, lane);
  int ahead = depth;  // of this group's next chunk, from the piece's begin
  while (share.at < share.end) {
    const int tile = share.at / args.tile.chunks;
    const int piece_end = min(share.end, (tile + 1) * args.tile.chunks), count = piece_end - share.at;
    const bool has_first = share.at == tile * args.tile.chunks;
    products.clear();
#pragma unroll 1
    for (; ahead < count; ahead += Shape::depth_groups) products.multiply(scales);
    ahead -= count;
    products.finish();
    if constexpr (Shape::depth_groups > 1) add_depths<Shape>(products.sums, memory, depth);
    if (depth == 0) finish_piece<Shape>(args, products.sums, tile, has_first, piece_end, first_row, lane);
    share.at = piece_end;
  }
}

/// Blocks of 64 or more, a power of two; cols a multiple of 64.
template <typename T, typename Shape>
__global__ void __launch_bounds__(Shape::all_threads, Shape::blocks)
    tile_4bit_kernel(const __grid_constant__ Tile4BitArgs args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t tile_memory[];
  require_tile_shared(shared_address(tile_memory));
  allow_next_launch();
  if (threadIdx.x >=
      Shape::threads) {  // alone on a multiprocessor: a warp group that gives its registers to the others
    if constexpr (Shape::blocks == 1) asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == Shape::threads) start_boxes<Shape>(args, kSharedBegin);
    boxes_started<Shape>();
    if (threadIdx.x == Shape::threads) produce_boxes<Shape>(args, kSharedBegin);
  } else {
    if constexpr (Shape::blocks == 1) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Shape::registers));
    consume_4bit<T, Shape>(args, tile_memory);
  }
#endif
}

}  // namespace nibble::kernels::cuda
