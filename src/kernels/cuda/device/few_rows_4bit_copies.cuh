// What one warp of few_rows_4bit.cuh copies: codes of sixteen rows, and what their absmax is made of, through a ring of
// its own, so that neither waits behind the other.
#pragma once

#include "kernels/cuda/device/absmax.cuh"
#include "kernels/cuda/device/activation.cuh"
#include "kernels/cuda/device/async.cuh"
#include "kernels/cuda/device/dependent.cuh"
#include "kernels/cuda/device/job.cuh"

namespace nibble::kernels::cuda {

struct FewRows4BitArgs {
  DeviceJobs jobs;
  DeviceX x;  // (m, cols)
  int m, cols;
  float book[16];            // the code book times a factor
  float book_scale;          // and what the sums are multiplied by in return
  const float* norm_weight;  // the norm of x, or null
  float eps, weight_offset;
  bool is_gated;  // two jobs' results as one: gated_out = activation(first) * second
  Activation activation;
  MatmulOutput gated_out;
  int x_stride;  // elements between rows of x in shared memory
};

namespace few4 {

inline constexpr int kTile = 16;       // rows of weights
inline constexpr int kMaxRows = 8;     // of x
inline constexpr int kWarps = 16;      // of a block
inline constexpr int kStages = 2;      // chunks of a warp's ring: more make x and each tile's first chunk wait
inline constexpr int kChunk = 256;     // columns: 128 bytes of a row
inline constexpr int kBook = 256 + 4;  // floats: the nested code book and its offset
inline constexpr int kXPadding = 8;    // elements: rows of x start 16 bytes apart, modulo all banks
// The table's rows are 256 bytes. Value pairs take the first half, the first stage of each warp's ring the second.
inline constexpr int kTableRow = 256;
inline constexpr int kTableBytes = 256 * kTableRow;
inline constexpr int kStageBytes = kTile * 128;  // of a warp

/// What the scales of a chunk are made of. kWhole: blocks of 64, columns a multiple of 256.
template <bool kNested, bool kWhole>
inline constexpr int kScaleBytes = kTile*(kNested&& kWhole ? 8 : 16);

/// Offsets in a block's shared memory: table and ring, scales, sums, books, barriers, x.
struct Layout {
  int scales, sums, books, barriers, x;
  int64_t end;

  __host__ __device__ Layout(int m, int books_count, int scale_bytes, int64_t x_bytes) {
    scales = kTableBytes + (kStages - 1) * kWarps * kStageBytes;
    sums = scales + kWarps * kStages * scale_bytes;
    books = sums + sums_of_tile(m) * 2 * 4;
    barriers = books + books_count * kBook * 4;
    x = barriers + 32;
    end = x + m * x_bytes;
  }
  __host__ __device__ static int sums_of_tile(int m) { return kWarps * kTile * m; }
};

/// A warp's two places in the ring: sixteen lines 256 bytes apart, one behind the pairs of the table, the other in the
/// memory after it, where two warps share the lines.
__device__ __forceinline__ uint32_t stage_at(uint32_t table, int warp, int stage) {
  constexpr int kLines = kTile * kTableRow;
  return stage == 0 ? table + warp * kLines + kTableRow / 2
                    : table + kTableBytes + warp / 2 * kLines + warp % 2 * (kTableRow / 2);
}

/// The four pieces of 32 bytes of a row are turned, so that four rows are read without conflicts.
__device__ __forceinline__ uint32_t turned(int row) { return row & 3; }

/// Where a tile lies: sixteen rows of one job, or eight of gate (job 0) and the same eight of up (job 1).
struct TilePlace {
  int job, first_row;

  __device__ __forceinline__ TilePlace(const FewRows4BitArgs& args, int tile) {
    const DeviceJob& of = args.jobs.of_tile(tile);
    job = args.is_gated ? 0 : static_cast<int>(&of - args.jobs.jobs);
    first_row = args.is_gated ? tile * (kTile / 2) : (tile - of.first_tile) * kTile;
  }
  __device__ __forceinline__ int job_of(const FewRows4BitArgs& args, int in_tile) const {
    return args.is_gated ? in_tile / 8 : job;
  }
  /// A row that is there.
  __device__ __forceinline__ int row_of(const FewRows4BitArgs& args, int in_tile) const {
    return min(first_row + (args.is_gated ? in_tile % 8 : in_tile), args.jobs.jobs[job].rows - 1);
  }
};

/// The blocks that a row's chunk of four times 64 columns lies in, the last one again past the row's end.
struct ChunkBlocks {
  uint32_t first_unit, last_unit;
  int shift;

  __device__ __forceinline__ ChunkBlocks(const FewRows4BitArgs& args, int job, int row, int chunk) {
    const uint32_t units = static_cast<uint32_t>(args.cols) >> 6, begin = static_cast<uint32_t>(row) * units;
    first_unit = begin + static_cast<uint32_t>(chunk) * (kChunk / 64);
    last_unit = begin + units - 1;
    shift = args.jobs.jobs[job].weight.block_shift - 6;
  }
  __device__ __forceinline__ uint32_t operator[](uint32_t unit) const {
    return min(first_unit + unit, last_unit) >> shift;
  }
};

/// Two lanes a row. Nested: a word or two that hold its codes, and the value or two above them.
template <bool kNested, bool kWhole>
__device__ __forceinline__ void copy_scales(const FewRows4BitArgs& args, const TilePlace& place, int chunk,
                                            uint32_t scales, int lane) {
  const int in_tile = lane / 2, job_index = place.job_of(args, in_tile);
  const DeviceJob& job = args.jobs.jobs[job_index];
  const Absmax& absmax = job.weight.absmax;
  const uint32_t part = lane % 2, to = scales + in_tile * (kScaleBytes<kNested, kWhole> / kTile) + part * 4;
  const ChunkBlocks blocks(args, job_index, place.row_of(args, in_tile), chunk);
  if constexpr (kNested && kWhole) {
    const auto* above = reinterpret_cast<const uint8_t*>(absmax.nested_absmax);
    copy_async_4(to, part == 0 ? absmax.codes + blocks.first_unit : above + (blocks.first_unit >> 8) * 4, 4);
  } else if constexpr (kNested) {
    const uint32_t first = blocks[0], last = blocks[3];
    if (part == 0) {
      const uint32_t units = static_cast<uint32_t>(job.rows) * (static_cast<uint32_t>(args.cols) >> 6);
      const uint32_t count = (units + (1u << blocks.shift) - 1) >> blocks.shift;
      copy_async_4(to, absmax.codes + (first & ~3u), min(count - (first & ~3u), 4u));
      if ((last ^ first) >= 4) copy_async_4(to + 8, absmax.codes + (last & ~3u), min(count - (last & ~3u), 4u));
    } else {
      copy_async_4(to, absmax.nested_absmax + (first >> 8), 4);
      if ((last ^ first) >= 256) copy_async_4(to + 8, absmax.nested_absmax + (last >> 8), 4);
    }
  } else {
    copy_async_4(to, absmax.values + blocks[part], 4);
    copy_async_4(to + 8, absmax.values + blocks[part + 2], 4);
  }
}

/// A chunk of a tile: sixteen rows of codes, zeros past the last row and column, and what their scales are made of.
template <bool kNested, bool kWhole>
__device__ __forceinline__ void copy_chunk(const FewRows4BitArgs& args, int tile, int chunk, uint32_t stage,
                                           uint32_t scales, int lane) {
  const TilePlace place(args, tile);
  const DeviceJob& job = args.jobs.jobs[place.job];
  const int64_t row_bytes = args.cols >> 1;
  const int64_t to_lower = args.is_gated ? args.jobs.jobs[1].weight.data - job.weight.data : 8 * row_bytes;
  const int row = lane / 8, left = job.rows - place.first_row;
  const bool is_inside = kWhole || chunk * (kChunk / 2) + lane % 8 * 16 < args.cols / 2;
  const uint8_t* from = job.weight.data + (place.first_row * row_bytes + chunk * (kChunk / 2)) +
                        static_cast<uint32_t>(row * static_cast<int>(row_bytes) + lane % 8 * 16);
  const uint32_t to = stage + row * kTableRow + (turned(row) ^ lane % 8 / 2) * 32 + lane % 2 * 16;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool is_there = is_inside && row + (args.is_gated ? i % 2 * 4 : i * 4) < left;
    copy_async_16(to + i * (4 * kTableRow), from + (i % 2 * 4 * row_bytes + i / 2 * to_lower), is_there ? 16 : 0);
  }
  copy_scales<kNested, kWhole>(args, place, chunk, scales, lane);
}

/// The scale of columns unit * 64 and on of a chunk's row, from what was copied for it.
template <bool kNested, bool kWhole>
__device__ __forceinline__ float scale_of(const FewRows4BitArgs& args, const float* books, const uint8_t* scales,
                                          const TilePlace& place, int chunk, int in_tile, int unit) {
  const uint8_t* from = scales + in_tile * (kScaleBytes<kNested, kWhole> / kTile);
  if constexpr (!kNested) return reinterpret_cast<const float*>(from)[unit];
  const int job = place.job_of(args, in_tile);
  const float* book = books + job * kBook;
  if constexpr (kWhole) {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    return nested_value(book[words.x >> (8 * unit) & 255], __uint_as_float(words.y), book[256]);
  } else {
    const uint4 words = *reinterpret_cast<const uint4*>(from);
    const ChunkBlocks blocks(args, job, place.row_of(args, in_tile), chunk);
    const uint32_t block = blocks[unit], first = blocks[0];
    const uint32_t code = __byte_perm(words.x, words.z, block - (first & ~3u)) & 255;
    return nested_value(book[code], __uint_as_float(block >> 8 == first >> 8 ? words.y : words.w), book[256]);
  }
}

template <bool kNested>
__device__ __forceinline__ void fill_books(const FewRows4BitArgs& args, float* books) {
  if constexpr (kNested)
    for (int j = 0; j < args.jobs.count; ++j) {
      const Absmax& absmax = args.jobs.jobs[j].weight.absmax;
      for (int i = static_cast<int>(threadIdx.x); i < 256; i += static_cast<int>(blockDim.x))
        books[j * kBook + i] = absmax.nested_code_book[i];
      if (threadIdx.x == 0) books[j * kBook + 256] = absmax.offset;
    }
}

}  // namespace few4
}  // namespace nibble::kernels::cuda
