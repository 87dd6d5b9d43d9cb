// The weights of ahead_4bit.cuh and turns_4bit.cuh on their way from 4 bits to the ring of panels in memory that its
// products read.
#pragma once

#include <cuda.h>

#include "kernels/cuda/device/absmax.cuh"
#include "kernels/cuda/device/async.cuh"
#include "kernels/cuda/device/job.cuh"
#include "kernels/cuda/device/pair_copies.cuh"
#include "kernels/cuda/device/weights_tile.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kAheadWarps = 3;  // of a block that decode
inline constexpr int kAheadThreads = 256 + 32 + 32 * kAheadWarps;

/// How weights are cut for tiles of kRows of them: units of eight rows, kParts times, by 256 columns.
template <int kRows_, int kParts_>
struct AheadCut {
  static constexpr int kRows = kRows_, kParts = kParts_;
  static constexpr int kUnits = kRows / 8 / kParts;  // that make 256 columns of a tile's weights
  static_assert(kUnits * 8 * kParts == kRows);
  static constexpr int kChunkBytes = kRows * 128, kHalfBytes = kChunkBytes / 2;  // 64 columns, decoded
};

/// Of ahead_4bit.cuh.
struct AheadTile : AheadCut<256, 4> {
  static constexpr int kStages = 4;
  static constexpr int kXBytes = 128 * 128;  // 64 columns
  static constexpr int kStageBytes = kXBytes + kChunkBytes;
  static constexpr int kTable = kStages * kStageBytes, kCopies = 16;  // of a byte's two values, for half a warp's lanes
  static constexpr int kBarriers = kTable + 256 * kCopies * 8;
  static constexpr int kBytes = kBarriers + 2 * kStages * 8;
};

/// A panel is a tile's decoded weights: for each 64 columns its rows of 128 bytes, swizzled as products read them.
/// Panels are decoded in groups, 256 columns of all panels of a group before the next columns; a group takes the place
/// of the one that lies `slots` groups before it.
struct AheadArgs {
  CUtensorMap x;              // (m, 2 * cols) bytes
  CUtensorMap out[kMaxJobs];  // y
  DeviceJobs jobs;
  float book[16];
  uint8_t* panels;
  float* partials;             // sums of cut tiles
  uint32_t* left;              // counts, zeros before and after: by each warp of who left sums
  uint32_t* gone;              // one: blocks that have brought all they want
  uint32_t* read;              // of a group: chunks that are in shared memory for good
  uint32_t* ready;             // of a panel's 256 columns: units decoded
  int m, cols, chunks, quads;  // columns, by 64, by 256
  int column_tiles, tiles, whole_tiles;
  int group, groups, slots;  // group: panels of one
  int panel_bytes;
  bool is_nested;

  __device__ __forceinline__ uint8_t* panel_of(int row_tile) const {
    return panels + int64_t{row_tile % (group * slots)} * panel_bytes;
  }
  __device__ __forceinline__ uint32_t* ready_of(int row_tile) const { return ready + row_tile * quads; }
  __device__ __forceinline__ int panels_of_group(int g) const { return min(group, jobs.tiles - g * group); }
  /// By one thread of a block, once that many chunks of a panel have been read for a tile.
  __device__ __forceinline__ void tell_read(int row_tile, int count) const;
};

__device__ __forceinline__ void add_release(uint32_t* to, uint32_t value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

__device__ __forceinline__ void AheadArgs::tell_read(int row_tile, int count) const {
  const int g = row_tile / group;
  if (g + slots < groups) add_release(read + g, static_cast<uint32_t>(count));
}

template <typename Tile>
__device__ __forceinline__ void fill_ahead_table(const AheadArgs& args, uint8_t* memory) {
  float2* table = reinterpret_cast<float2*>(memory + Tile::kTable);
  for (int i = threadIdx.x; i < 256 * Tile::kCopies; i += kAheadThreads)
    table[i] = make_float2(args.book[i / (16 * Tile::kCopies)], args.book[i / Tile::kCopies % 16]);
}

/// Where a unit's rows are: some of a panel by 256 columns, for a warp. A lane has eight columns of each row, and of
/// eight rows at a time the scale of 64 columns of one.
template <typename Tile>
struct AheadPlace {
  int row_tile, quad, row;       // row: of the panel
  int last;                      // of the weight's rows, from this one on
  const uint8_t* codes;          // the lane's columns of the first row
  uint32_t scale_at, scale_row;  // in units of 64 columns: the lane's, from one row to the next
  const DeviceJob* job;
  bool has_columns;

  __device__ __forceinline__ AheadPlace(const AheadArgs& args, int unit, int lane) {
    const int of_group = args.group * args.quads * Tile::kUnits;
    const int g = unit / of_group, rest = unit - g * of_group;
    const int of_quad = args.panels_of_group(g) * Tile::kUnits;
    quad = rest / of_quad;
    const int in_quad = rest - quad * of_quad;
    row_tile = g * args.group + in_quad / Tile::kUnits;
    row = in_quad % Tile::kUnits * (8 * Tile::kParts);
    job = &args.jobs.of_tile(row_tile);
    const int first = min((row_tile - job->first_tile) * Tile::kRows + row, job->rows - 1);
    last = job->rows - 1 - first;
    const int column = quad * 256 + lane * 8;
    has_columns = column < args.cols;
    codes = job->weight.data + (int64_t{first} * args.cols + (has_columns ? column : 0)) / 2;
    scale_row = static_cast<uint32_t>(args.cols >> 6);
    scale_at =
        static_cast<uint32_t>(first) * scale_row + min(static_cast<uint32_t>(quad * 4 + lane % 4), scale_row - 1);
  }
};

/// Codes and scales of eight rows on their way.
struct AheadRows {
  uint32_t words[8], code;
  float value;

  template <typename Tile>
  __device__ __forceinline__ void fetch(const AheadArgs& args, const AheadPlace<Tile>& place, int part, int lane) {
#pragma unroll
    for (int r = 0; r < 8; ++r)
      words[r] = __ldcs(
          reinterpret_cast<const uint32_t*>(place.codes + int64_t{min(8 * part + r, place.last)} * (args.cols / 2)));
    const auto row = static_cast<uint32_t>(min(8 * part + lane / 4, place.last));
    const uint32_t block = (place.scale_at + row * place.scale_row) >> (place.job->weight.block_shift - 6);
    const Absmax& absmax = place.job->weight.absmax;
    if (args.is_nested) {
      code = __ldg(absmax.codes + block);
      value = __ldg(absmax.nested_absmax + block / quant::kNestedBlock);
    } else {
      value = __ldg(absmax.values + block);
    }
  }

  /// The lane's scale.
  __device__ __forceinline__ float scale(const AheadArgs& args, const DeviceJob& job) const {
    const Absmax& absmax = job.weight.absmax;
    return args.is_nested ? nested_value(__ldg(absmax.nested_code_book + code), value, absmax.offset) : value;
  }
};

/// Until the group whose place this one takes has been read by all products.
__device__ __forceinline__ void wait_for_place(const AheadArgs& args, int g) {
  if (g < args.slots) return;
  const int before = g - args.slots;
  const auto all = static_cast<uint32_t>(2 * args.group * args.column_tiles * args.chunks);  // of both blocks
  while (load_acquire(args.read + before) != all) {
  }
  __syncwarp();
}

/// Eight rows to their place in a panel.
template <typename T, int kCopies>
__device__ __forceinline__ void decode_rows(const uint32_t (&words)[8], float scale, const float2* table, uint8_t* to,
                                            bool has_columns, int lane) {
#pragma unroll
  for (int r = 0; r < 8; ++r) {
    const float own = __shfl_sync(kFullMask, scale, 4 * r + lane / 8);
    const uint4 decoded = decode_word<T, kCopies>(words[r], own, table);
    if (has_columns) *reinterpret_cast<uint4*>(to + r * 128 + (lane % 8 ^ r) * 16) = decoded;
  }
}

/// One of `warps` that decode: every one has its units, in the order in which products want them; those of the next
/// are on their way while it decodes one.
template <typename T, typename Tile>
__device__ __forceinline__ void decode_ahead(const AheadArgs& args, const uint8_t* memory, int warp, int warps) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float2* table = reinterpret_cast<const float2*>(memory + Tile::kTable) + lane % Tile::kCopies;
  const int units = args.jobs.tiles * args.quads * Tile::kUnits;
  if (warp >= units) return;
  int group = 0;
  AheadPlace<Tile> next(args, warp, lane);
  AheadRows rows[Tile::kParts];
#pragma unroll
  for (int p = 0; p < Tile::kParts; ++p) rows[p].fetch(args, next, p, lane);
  for (int unit = warp; unit < units; unit += warps) {
    const AheadPlace<Tile> now = next;
    next = AheadPlace<Tile>(args, min(unit + warps, units - 1), lane);
    if (const int g = now.row_tile / args.group; g != group) wait_for_place(args, group = g);
    uint8_t* to = args.panel_of(now.row_tile) + int64_t{now.quad * 4 + lane / 8} * Tile::kChunkBytes + now.row * 128;
#pragma unroll
    for (int p = 0; p < Tile::kParts; ++p) {
      const AheadRows own = rows[p];
      const float scale = own.scale(args, *now.job);
      rows[p].fetch(args, next, p, lane);
      decode_rows<T, Tile::kCopies>(own.words, scale, table, to + p * 1024, now.has_columns, lane);
    }
    __syncwarp();
    if (lane == 0) add_release(args.ready_of(now.row_tile) + now.quad, 1);
  }
}

/// By the warp that brings a block's stages, when it needs no more: the last one of all leaves the counts zero.
__device__ __forceinline__ void leave_ahead(const AheadArgs& args, int blocks) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  uint32_t before = 0;
  if (lane == 0)
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(args.gone) : "memory");
  if (__shfl_sync(kFullMask, before, 0) != static_cast<uint32_t>(blocks) - 1) return;
  const int counts = args.jobs.tiles * args.quads;
  for (int i = lane; i < counts; i += 32) args.ready[i] = 0;
  for (int i = lane; i < args.groups; i += 32) args.read[i] = 0;
  if (lane == 0) *args.gone = 0;
}

/// By all threads: barriers of the stages, each free after `arrivals` of warps, and the table.
template <typename Tile>
__device__ __forceinline__ void start_ahead(const AheadArgs& args, uint8_t* memory, uint32_t arrivals) {
  const uint32_t full = shared_address(memory) + Tile::kBarriers, empty = full + 8 * Tile::kStages;
  if (threadIdx.x == 0) {
    for (int s = 0; s < Tile::kStages; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, arrivals);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  fill_ahead_table<Tile>(args, memory);
  __syncthreads();
  pair_waits();
  wait_for_previous_launch();
  allow_next_launch();
}

/// By the four warps that do not multiply: the first brings stages (`bring`, one thread), the others decode.
template <typename T, typename Tile, typename Bring>
__device__ __forceinline__ void serve_ahead(const AheadArgs& args, uint8_t* memory, const Bring& bring) {
  if (threadIdx.x >= 288) {
    const int warp = static_cast<int>((threadIdx.x / 32 - 9) * gridDim.x + blockIdx.x);
    decode_ahead<T, Tile>(args, memory, warp, kAheadWarps * static_cast<int>(gridDim.x));
  } else {
    if (threadIdx.x == 256) bring();
    __syncwarp();
    leave_ahead(args, static_cast<int>(gridDim.x / 2) * 2);
  }
}

}  // namespace nibble::kernels::cuda
