// LLM.int8() by many rows of x, in three launches: codes, scales and the list of outlier columns; those columns in 16
// bits; products.
#include "kernels/cuda/device/int8_tile.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/vector.cuh"
#include "kernels/cuda/matmul_int8.h"
#include "kernels/cuda/tensor_map.h"

namespace nibble::kernels::cuda {
namespace {

/// Pieces of one block of memory, one after the other.
class Pieces {
 public:
  explicit Pieces(uint8_t* memory) : memory_(memory) {}
  template <typename T>
  T* take(int64_t size_bytes) {
    uint8_t* piece = memory_ + size_;
    size_ += padded_to_256(size_bytes);
    return reinterpret_cast<T*>(piece);
  }
  int64_t size() const { return size_; }

 private:
  uint8_t* memory_;
  int64_t size_ = 0;
};

/// Scratch of the tiles, for weights of at most `rows` rows at once.
struct TilePieces {
  Int8Left left{};
  uint8_t* panels_w = nullptr;
  int64_t size = 0;

  TilePieces(uint8_t* memory, const MatmulInput& input, bool has_threshold, int64_t rows) {
    const int64_t panels = panels_of(input);
    Pieces pieces(memory);
    left.codes = pieces.take<int8_t>(input.m * input.cols);
    left.scales = pieces.take<float>(input.m * 4);
    if (has_threshold) {
      left.summary = pieces.take<OutlierSummary>(sizeof(OutlierSummary));
      left.live_chunks = pieces.take<int>((input.cols / kInt8Chunk + 1) * 4);
      left.columns = pieces.take<int>((panels + 1) * kOutlierPanel * 4);
      left.flags = pieces.take<uint8_t>(input.cols);
      left.panels_x = pieces.take<uint8_t>(panels * input.m * 128);
      panels_w = pieces.take<uint8_t>(panels * rows * 128);
    }
    size = pieces.size();
  }
  static int64_t panels_of(const MatmulInput& input) { return (input.cols + kOutlierPanel - 1) / kOutlierPanel; }
};

/// Weight rows of a tile: where the last round of blocks leaves least undone. A step's time grows with the bytes of
/// both sides.
int tile_rows_for(const Context& context, const MatmulInput& input, const MatmulInt8Job* jobs, int64_t count) {
  const int64_t column_tiles = (input.m + kInt8TileX - 1) / kInt8TileX;
  int best = 0;
  int64_t least = 0;
  for (const int rows : {256, 128, 64}) {
    int64_t tiles = 0;
    for (int64_t j = 0; j < count; ++j) tiles += (jobs[j].rows + rows - 1) / rows * column_tiles;
    const int64_t time = (tiles + context.multiprocessors - 1) / context.multiprocessors * (rows + 96);
    if (best == 0 || time < least) best = rows, least = time;
  }
  return best;
}

/// True if x can be the left side as it lies, where all columns are outliers.
template <typename T>
bool may_be_direct(const MatmulInput& input) {
  return std::is_same_v<T, __nv_bfloat16> && input.x_dtype == DType::bf16 && is_aligned(input.x, 16);
}

template <typename T, int kRows>
bool launch_tiles(const Context& context, const MatmulInput& input, const MatmulInt8Job* jobs, int64_t count,
                  const TilePieces& pieces, int64_t panel_rows) {
  Int8TileArgs args{};
  args.jobs = with_weights(jobs, count, kRows);
  args.left = pieces.left;
  args.m = static_cast<int>(input.m);
  args.chunks = static_cast<int>((input.cols + kInt8Chunk - 1) / kInt8Chunk);
  args.column_tiles = static_cast<int>((input.m + kInt8TileX - 1) / kInt8TileX);
  args.panel_rows = static_cast<int>(panel_rows);
  bool is_good = describe_matrix(args.codes, pieces.left.codes, input.m, input.cols, kInt8TileX);
  int first = 0;
  for (int64_t j = 0; j < count; ++j) {
    is_good = is_good && describe_matrix(args.weights[j], jobs[j].w, jobs[j].rows, input.cols, kRows);
    args.job_panel_row[j] = first;
    first += static_cast<int>(jobs[j].rows);
  }
  if (pieces.panels_w) {
    const int64_t panels = TilePieces::panels_of(input);
    is_good = is_good && describe_matrix(args.panels_x, pieces.left.panels_x, panels * input.m, 128, kInt8TileX) &&
              describe_matrix(args.panels_w, pieces.panels_w, panels * panel_rows, 128, kRows);
  }
  if (may_be_direct<T>(input))
    is_good = is_good && describe_matrix(args.direct_x, input.x, input.m, input.cols * 2, kInt8TileX);
  if (!is_good) return false;
  const auto kernel = int8_tile_kernel<T, kRows>;
  constexpr int kShared = Int8TileShared<kRows>::kBytes;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  const auto blocks =
      static_cast<unsigned>(std::min<int64_t>(int64_t{args.jobs.tiles} * args.column_tiles, context.multiprocessors));
  launch_dependent(context, kernel, dim3(blocks), 384, kShared, args);
  return true;
}

/// One part of a call: the outlier columns' panels, then the product.
template <typename T>
bool multiply_part(const Context& context, const MatmulInput& input, const MatmulInt8Job* jobs, int64_t count,
                   const TilePieces& pieces, bool is_first) {
  int64_t panel_rows = 0;
  for (int64_t j = 0; j < count; ++j) panel_rows += jobs[j].rows;
  if (pieces.panels_w) {
    OutlierWeights weights{with_weights(jobs, count, 1), static_cast<int>(panel_rows), pieces.panels_w};
    launch_dependent(context, gather_outliers_kernel<T>, dim3(static_cast<unsigned>(context.multiprocessors) * 8), 256,
                     0, DeviceX(input), is_first ? static_cast<int>(input.m) : 0, static_cast<int>(input.cols),
                     pieces.left, weights);
  }
  switch (tile_rows_for(context, input, jobs, count)) {
    case 64:
      return launch_tiles<T, 64>(context, input, jobs, count, pieces, panel_rows);
    case 128:
      return launch_tiles<T, 128>(context, input, jobs, count, pieces, panel_rows);
    default:
      return launch_tiles<T, 256>(context, input, jobs, count, pieces, panel_rows);
  }
}

/// False if the driver can't describe matrices to the copy engine; what was launched then does no harm.
template <typename T>
bool multiply_tiles(const Context& context, const MatmulInput& input, float threshold, const MatmulInt8Job* jobs,
                    int64_t count) {
  constexpr int64_t kPanelBytes = int64_t{192} << 20;  // of weights in 16 bits, at most
  const bool has_threshold = threshold > 0;
  const int64_t panels = TilePieces::panels_of(input);
  int64_t all_rows = 0;
  for (int64_t j = 0; j < count; ++j) all_rows += jobs[j].rows;
  const int64_t most =
      has_threshold ? std::min(all_rows, std::max<int64_t>(kPanelBytes / (panels * 128) / 256 * 256, 256)) : all_rows;
  const int64_t size = TilePieces(nullptr, input, has_threshold, most).size;
  const TilePieces pieces(static_cast<uint8_t*>(context.scratch->reserve(size)), input, has_threshold, most);
  const auto cols = static_cast<int>(input.cols);
  const unsigned blocks = blocks_for(input.m, 8, int64_t{context.multiprocessors} * 8);
  with_x_type(input, [&](auto element) {
    using From = decltype(element);
    const auto kernel = quantize_left_kernel<From>;
    const int shared = has_threshold ? cols : 0;
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    launch_dependent(context, kernel, dim3(blocks), 256, static_cast<size_t>(shared), static_cast<const From*>(input.x),
                     static_cast<int>(input.m), cols, threshold, may_be_direct<T>(input),
                     OutlierFlags(context.counters), pieces.left);
  });
  MatmulInt8Job part[kMaxJobs];
  int64_t parts = 0, rows = 0;
  bool is_first = true;
  const auto flush = [&] {
    const bool is_done = parts == 0 || multiply_part<T>(context, input, part, parts, pieces, is_first);
    is_first = false;
    parts = rows = 0;
    return is_done;
  };
  for (int64_t j = 0; j < count; ++j)
    for (int64_t first = 0; first < jobs[j].rows; first += most) {
      MatmulInt8Job piece = jobs[j];
      piece.w += first * input.cols;
      piece.absmax += first;
      piece.rows = std::min(most, jobs[j].rows - first);
      piece.out = output_from(jobs[j].out, 0, first);
      if ((parts == kMaxJobs || rows + piece.rows > most) && !flush()) return false;
      part[parts++] = piece;
      rows += piece.rows;
    }
  return flush();
}

bool suits_tiles(const Context& context, const MatmulInput& input, float threshold) {
  return context.capability == 90 && !input.batch_invariant && input.cols <= OutlierFlags::kMaxCols &&
         input.m * TilePieces::panels_of(input) <= 0x7fffffff && (threshold <= 0 || input.compute != DType::f32);
}

}  // namespace

bool multiply_tiles_int8(const Context& context, const MatmulInput& input, float threshold, const MatmulInt8Job* jobs,
                         int64_t count) {
  if (!suits_tiles(context, input, threshold)) return false;
  return input.compute == DType::bf16 ? multiply_tiles<__nv_bfloat16>(context, input, threshold, jobs, count)
                                      : multiply_tiles<__half>(context, input, threshold, jobs, count);
}

}  // namespace nibble::kernels::cuda
