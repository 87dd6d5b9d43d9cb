// matmul_4bit: which kernel takes a call.
#include <bit>

#include "kernels/cuda/dense_library.h"
#include "kernels/cuda/device/any_shape.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/pair_4bit.cuh"
#include "kernels/cuda/device/panel_4bit.cuh"
#include "kernels/cuda/device/tile_4bit.cuh"
#include "kernels/cuda/device/vector.cuh"
#include "kernels/cuda/device/weights_4bit.cuh"
#include "kernels/cuda/entries.h"
#include "kernels/cuda/tensor_map.h"

namespace nibble::kernels::cuda {
namespace {

/// One element at a time.
struct Decode4Bit {
  const uint8_t* packed;
  Absmax absmax;
  int64_t cols, block;
  float book[16];

  __device__ float operator()(int64_t row, int64_t column) const {
    const int64_t i = row * cols + column;
    return __fmul_rn(book[packed[i / 2] >> (i % 2 == 0 ? 4 : 0) & 15], absmax_at(absmax, i / block));
  }
};

void multiply_slowly(const Context& context, const MatmulInput& input, const Matmul4BitJob& job) {
  Decode4Bit decode{job.packed, job.absmax, input.cols, job.block, {}};
  std::copy_n(job.code_book, 16, decode.book);
  multiply_any_shape(context, input, job.rows, decode, job.out);
}

bool is_nested(const Matmul4BitJob& job) { return job.absmax.values == nullptr; }

/// What every job of a call must be for the tensor core kernels, and alike in what a launch has one of.
bool is_regular(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count,
                int64_t min_block) {
  if (context.capability < 80 || input.compute == DType::f32 || input.cols % min_block != 0 ||
      input.cols > 0x7fffff00 || input.m > 0x7fffff00)
    return false;
  for (int64_t j = 0; j < count; ++j) {
    const Matmul4BitJob& job = jobs[j];
    if (job.block < min_block || !std::has_single_bit(static_cast<uint64_t>(job.block)) ||
        !is_aligned(job.packed, 16) || !is_aligned(job.absmax.codes, 4) || is_nested(job) != is_nested(jobs[0]) ||
        job.rows > 0x7fffff00 || job.rows * (input.cols / 32) > 0xffffffff ||
        !std::equal(job.code_book, job.code_book + 16, jobs[0].code_book))
      return false;
  }
  return true;
}

DeviceJobs with_weights(const Matmul4BitJob* jobs, int64_t count, int tile_rows) {
  DeviceJobs all = device_jobs(jobs, count, tile_rows);
  for (int64_t j = 0; j < count; ++j)
    all.jobs[j].weight = {jobs[j].packed, jobs[j].absmax, std::countr_zero(static_cast<uint64_t>(jobs[j].block))};
  return all;
}

/// A factor that brings the code book's values near bf16 ones, so that rounding them costs half of what rounding each
/// weight would; FP4's become exact.
float book_scale(const float* code_book, DType compute) {
  if (compute != DType::bf16) return 1.0f;
  if (code_book[1] == -0.6961928009986877f) return 1.436715f;
  if (code_book[1] == 0.0052083334885537624f) return 12.0f;
  return 1.0f;
}

template <typename T, bool kNested>
void multiply_few_rows(const Context& context, const Fused4BitArgs& fused, int64_t limit) {
  FewRowsArgs args{};
  args.jobs = with_weights(fused.jobs, fused.count, kFewRowsTile);
  if (fused.is_gated)
    args.jobs.tiles = static_cast<int>((fused.jobs[0].rows + kFewRowsTile / 2 - 1) / (kFewRowsTile / 2));
  const float scale = book_scale(fused.jobs[0].code_book, fused.input.compute);
  for (int i = 0; i < 16; ++i) args.book[i] = fused.jobs[0].code_book[i] * scale;
  args.book_scale = 1.0f / scale;
  args.norm_weight = fused.norm_weight;
  args.eps = fused.eps;
  args.weight_offset = fused.weight_offset;
  args.is_gated = fused.is_gated;
  args.activation = fused.activation;
  args.gated_out = fused.gated_out;
  launch_few_rows_each<FewRows4Bit<T, kNested>>(context, fused.input, args, limit);
}

/// A factor that brings NF4's values within 2^-12.6 of f16 ones, where their own rounding to bf16 costs 2^-9; FP4's
/// become exact.
float half_book_scale(const float* code_book) {
  if (code_book[1] == -0.6961928009986877f) return 1.6384993f;
  if (code_book[1] == 0.0052083333488553762f) return 12.0f;
  return 1.0f;
}

/// What tile_4bit.cuh and pair_4bit.cuh know of a call; x in T goes to scratch where it does not lie so already. False
/// if the driver can't describe it.
template <typename T, typename Shape>
bool describe_tiles(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count,
                    int blocks, Tile4BitArgs& args) {
  TileArgs& tile = args.tile;
  tile.jobs = with_weights(jobs, count, Shape::rows);
  const float scale = Shape::is_late && input.compute == DType::bf16 ? book_scale(jobs[0].code_book, input.compute)
                                                                     : half_book_scale(jobs[0].code_book);
  for (int i = 0; i < 16; ++i) tile.book[i] = jobs[0].code_book[i] * scale;
  args.unscale = 1.0f / scale;
  args.is_nested = is_nested(jobs[0]);
  tile.m = static_cast<int>(input.m);
  tile.cols = static_cast<int>(input.cols);
  tile.chunks = static_cast<int>((input.cols + kTileChunk - 1) / kTileChunk);
  tile.column_tiles = static_cast<int>((input.m + Shape::columns - 1) / Shape::columns);
  tile.flags = context.counters;
  const int64_t x_bytes = is_rounded<T>(input) ? 0 : padded_to_256(input.m * input.cols * 2);
  const int64_t partials = int64_t{context.multiprocessors} * (Shape::rows / blocks) * Shape::columns * 4;
  auto* scratch = static_cast<uint8_t*>(context.scratch->reserve(x_bytes + partials));
  tile.partials = reinterpret_cast<float*>(scratch + x_bytes);
  const void* x = x_bytes > 0 ? scratch : input.x;
  if (!describe_matrix(args.x, x, input.m, input.cols * 2, Shape::columns / blocks)) return false;
  for (int64_t j = 0; j < count; ++j)
    if (!describe_matrix(args.codes[j], jobs[j].packed, jobs[j].rows, input.cols / 2, Shape::rows / blocks,
                         64 / blocks))
      return false;
  if (x_bytes > 0) round_x(context, input, reinterpret_cast<T*>(scratch));
  return true;
}

/// Clusters of `blocks` that work on a tile together, as many as the GPU holds.
template <typename T, typename Shape>
bool launch_tiles(void (*kernel)(Tile4BitArgs), const Context& context, const MatmulInput& input,
                  const Matmul4BitJob* jobs, int64_t count, int blocks) {
  Tile4BitArgs args{};
  if (!describe_tiles<T, Shape>(context, input, jobs, count, blocks, args)) return false;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kBytes);
  const int64_t pieces = int64_t{args.tile.jobs.tiles} * args.tile.column_tiles * args.tile.chunks;
  const auto clusters = static_cast<unsigned>(std::min<int64_t>(pieces, context.multiprocessors / blocks)),
             size = static_cast<unsigned>(blocks);
  launch_early(kernel, size * clusters, Shape::threads + 128, Shape::kBytes, stream_of(context.stream), args, size);
  return true;
}

template <typename T, typename Shape>
bool multiply_tiles(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
  return launch_tiles<T, Shape>(tile_4bit_kernel<T, Shape>, context, input, jobs, count, 1);
}

template <typename T, typename Shape>
bool multiply_pairs(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
  return launch_tiles<T, Shape>(pair_4bit_kernel<T, Shape>, context, input, jobs, count, 2);
}

/// Rows of x up to which tile_4bit.cuh wins over pair_4bit.cuh.
constexpr int64_t kTileRows = 128;
/// Rows of x up to which pair_4bit.cuh serves; above, a run of a model failed and what failed was not found.
constexpr int64_t kPairRows = 512;

/// By the tile for m rows of x, at most kTileRows; f16 has fewer, to keep the build small.
template <typename T>
bool multiply_tiles(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
  if constexpr (!std::is_same_v<T, __half>) {
    if (input.m <= 16) return multiply_tiles<T, Tile4BitShape<true, 16, 1, 2, 2>>(context, input, jobs, count);
    if (input.m <= 32) return multiply_tiles<T, Tile4BitShape<true, 32, 1, 2, 2>>(context, input, jobs, count);
  }
  if (input.m <= 64) return multiply_tiles<T, Tile4BitShape<false, 64, 1, 2, 2>>(context, input, jobs, count);
  return multiply_tiles<T, Tile4BitShape<false, 128, 1, 2, 1>>(context, input, jobs, count);
}

/// By the tile that wastes least of m rows of x; f16 has one, to keep the build small.
template <typename T>
bool multiply_pairs(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
  if constexpr (!std::is_same_v<T, __half>)
    if ((input.m + 191) / 192 * 192 < (input.m + 255) / 256 * 256)
      return multiply_pairs<T, Pair4BitShape<192>>(context, input, jobs, count);
  return multiply_pairs<T, Pair4BitShape<256>>(context, input, jobs, count);
}

int64_t blocks_of(const MatmulInput& input, const Matmul4BitJob& job) {
  return quant::block_count(job.rows * input.cols, job.block);
}

/// For more rows of x, blocks of 32 and columns that are no multiple of 64: tile.cuh.
template <typename T>
void multiply_wide_tiles(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
  using Launch = TileLaunch<Tile4Bit<T>, TileShape<256, 2>>;
  TileArgs args{};
  args.jobs = with_weights(jobs, count, Launch::kRows);
  std::copy_n(jobs[0].code_book, 16, args.book);
  args.waits_for_scales = is_nested(jobs[0]);
  int64_t scales = 0;
  for (int64_t j = 0; args.waits_for_scales && j < count; ++j) scales += blocks_of(input, jobs[j]);
  const TileScratch scratch = Launch::reserve(context, input, scales * 4);
  PrepareArgs prepare{};
  float* next = scratch.more;
  for (int64_t j = 0; args.waits_for_scales && j < count; ++j) {
    prepare.absmax[j] = {jobs[j].absmax, blocks_of(input, jobs[j]), next};
    args.jobs.jobs[j].weight.absmax.values = next;
    next += blocks_of(input, jobs[j]);
  }
  Launch::template prepare<T, ColumnOrder::runs_of_32>(context, input, scratch, prepare);
  Launch::run(context, input, scratch, args);
}

/// Rows of x from which decoding the weight to memory and cuBLASLt win over decoding it in every tile.
constexpr int64_t kLibraryRows = 1536;
/// Decoded at a time: what the L2 cache still holds when the product reads it.
constexpr int64_t kPanelBytes = int64_t{32} << 20;

/// The absmax from block `first` on, a multiple of kNestedBlock.
Absmax absmax_from(Absmax absmax, int64_t first) {
  if (absmax.values) {
    absmax.values += first;
  } else {
    absmax.codes += first;
    absmax.nested_absmax += first / quant::kNestedBlock;
  }
  return absmax;
}

/// All jobs by panels of rows, or none: false if blocks don't divide into panels or the library has nothing.
template <typename T>
bool multiply_by_library(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
  if (!has_dense_library()) return false;
  constexpr int64_t kStep = 1024;
  const int64_t panel_rows = std::max(kStep, kPanelBytes / (2 * input.cols) / kStep * kStep);
  for (int64_t j = 0; j < count; ++j) {
    if (panel_rows * input.cols % (jobs[j].block * quant::kNestedBlock) != 0) return false;
    for (const int64_t rows : {std::min(panel_rows, jobs[j].rows), (jobs[j].rows - 1) % panel_rows + 1})
      if (!takes_dense_multiply(context, input.compute, input.m, rows, input.cols, jobs[j].out)) return false;
  }
  const int64_t x_bytes = is_rounded<T>(input) ? 0 : padded_to_256(input.m * input.cols * 2);
  auto* scratch =
      static_cast<uint8_t*>(context.scratch->reserve(kDenseLibraryBytes + x_bytes + panel_rows * input.cols * 2));
  void* panel = scratch + kDenseLibraryBytes + x_bytes;
  const void* x = input.x;
  if (x_bytes > 0) {
    x = scratch + kDenseLibraryBytes;
    round_x(context, input, reinterpret_cast<T*>(scratch + kDenseLibraryBytes));
  }
  for (int64_t j = 0; j < count; ++j)
    for (int64_t first = 0; first < jobs[j].rows; first += panel_rows) {
      const Matmul4BitJob& job = jobs[j];
      const int64_t rows = std::min(panel_rows, job.rows - first), element = first * input.cols;
      PanelArgs args{job.packed + element / 2,
                     absmax_from(job.absmax, element / job.block),
                     rows * input.cols / 8,
                     std::countr_zero(static_cast<uint64_t>(job.block)) - 3,
                     panel,
                     {}};
      std::copy_n(job.code_book, 16, args.book);
      const unsigned blocks =
          blocks_for(args.vectors, kPanelThreads * kPanelVectors, int64_t{context.multiprocessors} * 4);
      decode_panel_kernel<T><<<blocks, kPanelThreads, 0, stream_of(context.stream)>>>(args);
      if (!dense_multiply(context, x, panel, input.compute, input.m, rows, input.cols, output_from(job.out, 0, first),
                          scratch))
        return false;
    }
  return true;
}

/// True if the call was taken. The kernel for few rows also serves calls whose bits must not depend on their number.
template <typename T, bool kNested>
bool multiply_few(const Context& context, const Fused4BitArgs& args) {
  const MatmulInput& input = args.input;
  if (!is_regular(context, input, args.jobs, args.count, 64)) return false;
  const int64_t limit = few_rows_limit<FewRows4Bit<T, kNested>>(context, input.cols);
  if (limit == 0 || (!input.batch_invariant && input.m > limit)) return false;
  multiply_few_rows<T, kNested>(context, args, limit);
  return true;
}

/// True if the call was taken.
template <typename T, bool kNested>
bool multiply_regular(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
  if (multiply_few<T, kNested>(context, {.input = input, .jobs = jobs, .count = count})) return true;
  if (input.batch_invariant || !is_regular(context, input, jobs, count, 32)) return false;
  if (input.m >= kLibraryRows && multiply_by_library<T>(context, input, jobs, count)) return true;
  if (context.capability != 90) return multiply_by_library<T>(context, input, jobs, count);
  if (input.m > kTileRows && input.m <= kPairRows && is_regular(context, input, jobs, count, 64) &&
      multiply_pairs<T>(context, input, jobs, count))
    return true;
  if (input.m > kTileRows || !is_regular(context, input, jobs, count, 64) ||
      !multiply_tiles<T>(context, input, jobs, count))
    multiply_wide_tiles<T>(context, input, jobs, count);
  return true;
}

void multiply(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
  const bool nested = is_nested(jobs[0]);
  if (input.compute == DType::bf16 && (nested ? multiply_regular<__nv_bfloat16, true>(context, input, jobs, count)
                                              : multiply_regular<__nv_bfloat16, false>(context, input, jobs, count)))
    return;
  if (input.compute == DType::f16 && (nested ? multiply_regular<__half, true>(context, input, jobs, count)
                                             : multiply_regular<__half, false>(context, input, jobs, count)))
    return;
  for (int64_t j = 0; j < count; ++j) multiply_slowly(context, input, jobs[j]);
}

}  // namespace

void matmul_4bit(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
  if (input.m == 0) return;
  for (int64_t first = 0; first < count; first += kMaxJobs)
    multiply(context, input, jobs + first, std::min<int64_t>(kMaxJobs, count - first));
}

bool matmul_4bit_fused(const Context& context, const Fused4BitArgs& args) {
  const bool nested = is_nested(args.jobs[0]);
  if (args.count > kMaxJobs ||
      (args.norm_weight && (!is_aligned(args.input.x, 16) || !is_aligned(args.norm_weight, 16))))
    return false;
  if (args.input.compute == DType::bf16)
    return nested ? multiply_few<__nv_bfloat16, true>(context, args)
                  : multiply_few<__nv_bfloat16, false>(context, args);
  if (args.input.compute == DType::f16)
    return nested ? multiply_few<__half, true>(context, args) : multiply_few<__half, false>(context, args);
  return false;
}

}  // namespace nibble::kernels::cuda
