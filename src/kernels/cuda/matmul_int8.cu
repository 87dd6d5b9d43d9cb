// matmul_int8: LLM.int8(). Few rows of x in one launch; many in three: codes, scales and the list of outlier columns;
// those columns in 16 bits; products. Nothing waits for the host.
#include "kernels/cuda/device/any_shape.cuh"
#include "kernels/cuda/device/int8_tile.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/vector.cuh"
#include "kernels/cuda/device/weights_int8.cuh"
#include "kernels/cuda/entries.h"
#include "kernels/cuda/tensor_map.h"

namespace nibble::kernels::cuda {
namespace {

__device__ __forceinline__ float to_f16_value(float x) { return __half2float(__float2half_rn(x)); }

/// The quantized left side in scratch.
struct LeftSide {
  float* scales;       // (m)
  int* outlier_count;  // then as many columns, ascending
  int* outliers;       // (cols)
  uint8_t* flags;      // (cols), zero before
};

__global__ void __launch_bounds__(256) clear_kernel(uint8_t* flags, int64_t cols) {
  for (int64_t c = int64_t{blockIdx.x} * 256 + threadIdx.x; c < cols; c += int64_t{gridDim.x} * 256) flags[c] = 0;
}

/// A row a block: its absmax without outliers, whose columns get a flag.
__global__ void __launch_bounds__(256)
    measure_kernel(const DeviceX x, int64_t cols, float threshold, const LeftSide left) {
  __shared__ float shared[32];
  const int64_t row = int64_t{blockIdx.x} * cols;
  float maximum = 0;
#pragma unroll 4
  for (int64_t c = threadIdx.x; c < cols; c += 256) {
    const float value = to_f16_value(x[row + c]);
    if (is_outlier(value, threshold))
      left.flags[c] = 1;
    else
      maximum = fmaxf(maximum, fabsf(value));
  }
  maximum = block_max(maximum, shared);
  if (threadIdx.x == 0) left.scales[blockIdx.x] = maximum;
}

/// One block: the flagged columns as a list, ascending.
__global__ void __launch_bounds__(1024) list_kernel(int cols, const LeftSide left) {
  __shared__ int found[33];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int before = 0;
  for (int first = 0; first < cols; first += 1024) {
    const int column = first + static_cast<int>(threadIdx.x);
    const bool is_set = column < cols && left.flags[column];
    const unsigned all = __ballot_sync(kFullMask, is_set);
    if (lane == 0) found[warp] = __popc(all);
    __syncthreads();
    int at = before;
    for (int w = 0; w < 32; ++w) {
      if (w < warp) at += found[w];
      before += found[w];
    }
    if (is_set) left.outliers[at + __popc(all & ((1u << lane) - 1))] = column;
    __syncthreads();
  }
  if (threadIdx.x == 0) *left.outlier_count = before;
}

__device__ __forceinline__ float decode(const int8_t* w, const float* absmax, int64_t cols, int64_t row,
                                        int64_t column) {
  return __fmul_rn(__fmul_rn(static_cast<float>(w[row * cols + column]), absmax[row]), 1.0f / 127.0f);
}

/// y += the outlier columns' products, 64 x 64 a block; T: what both sides are rounded to. `out` accumulates, without
/// bias.
template <typename T>
__global__ void __launch_bounds__(256)
    outlier_kernel(const DeviceX x, int64_t m, int64_t cols, int64_t rows, const int8_t* w, const float* absmax,
                   const LeftSide left, const MatmulOutput out) {
  __shared__ float xs[kAnyStep][kAnyTile + 1], ws[kAnyStep][kAnyTile + 1];
  const int count = *left.outlier_count;
  if (count == 0) return;
  const int64_t first_row = int64_t{blockIdx.x} * kAnyTile, first_x = int64_t{blockIdx.y} * kAnyTile;
  const int nx = threadIdx.x % 16, ix = threadIdx.x / 16;
  float sums[4][4] = {};
  for (int k = 0; k < count; k += kAnyStep) {
#pragma unroll
    for (int j = 0; j < kAnyTile * kAnyStep / 256; ++j) {
      const int at = threadIdx.x + 256 * j, r = at / kAnyStep, c = at % kAnyStep;
      const bool has_column = k + c < count;
      const int64_t column = has_column ? left.outliers[k + c] : 0;
      xs[c][r] = has_column && first_x + r < m ? outlier_value<T>(x[(first_x + r) * cols + column]) : 0.0f;
      ws[c][r] = has_column && first_row + r < rows
                     ? to_float(from_float<T>(decode(w, absmax, cols, first_row + r, column)))
                     : 0.0f;
    }
    __syncthreads();
    for (int c = 0; c < min(kAnyStep, count - k); ++c)
#pragma unroll
      for (int a = 0; a < 4; ++a)
#pragma unroll
        for (int b = 0; b < 4; ++b) sums[a][b] = fmaf(xs[c][ix + 16 * a], ws[c][nx + 16 * b], sums[a][b]);
    __syncthreads();
  }
#pragma unroll
  for (int a = 0; a < 4; ++a)
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const int64_t i = first_x + ix + 16 * a, n = first_row + nx + 16 * b;
      if (i < m && n < rows) put(out, i, n, sums[a][b]);
    }
}

/// Any shape and alignment: 64 x 64 a block, integer sums; the outlier columns follow as above.
__global__ void __launch_bounds__(256)
    any_int8_kernel(const DeviceX x, int64_t m, int64_t cols, int64_t rows, const int8_t* w, const float* absmax,
                    const LeftSide left, const MatmulOutput out) {
  __shared__ int xs[kAnyStep][kAnyTile + 1], ws[kAnyStep][kAnyTile + 1];
  const int64_t first_row = int64_t{blockIdx.x} * kAnyTile, first_x = int64_t{blockIdx.y} * kAnyTile;
  const int nx = threadIdx.x % 16, ix = threadIdx.x / 16;
  int sums[4][4] = {};
  for (int64_t k = 0; k < cols; k += kAnyStep) {
#pragma unroll
    for (int j = 0; j < kAnyTile * kAnyStep / 256; ++j) {
      const int at = threadIdx.x + 256 * j, r = at / kAnyStep;
      const int64_t column = k + at % kAnyStep;
      const bool is_x = column < cols && first_x + r < m && !left.flags[column];
      xs[at % kAnyStep][r] =
          is_x ? encode_int8(to_f16_value(x[(first_x + r) * cols + column]), int8_scale(left.scales[first_x + r])) : 0;
      ws[at % kAnyStep][r] = column < cols && first_row + r < rows ? w[(first_row + r) * cols + column] : 0;
    }
    __syncthreads();
#pragma unroll 8
    for (int c = 0; c < kAnyStep; ++c)
#pragma unroll
      for (int a = 0; a < 4; ++a)
#pragma unroll
        for (int b = 0; b < 4; ++b) sums[a][b] += xs[c][ix + 16 * a] * ws[c][nx + 16 * b];
    __syncthreads();
  }
#pragma unroll
  for (int a = 0; a < 4; ++a)
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      const int64_t i = first_x + ix + 16 * a, n = first_row + nx + 16 * b;
      if (i < m && n < rows)
        put(out, i, n, static_cast<float>(sums[a][b]) * (left.scales[i] * absmax[n] * (1.0f / (127.0f * 127.0f))));
    }
}

int64_t left_side_bytes(const MatmulInput& input) {
  return padded_to_256(input.m * 4) + padded_to_256((input.cols + 1) * 4) + padded_to_256(input.cols);
}

LeftSide left_side_at(void* memory, const MatmulInput& input) {
  auto* bytes = static_cast<uint8_t*>(memory);
  auto* list = reinterpret_cast<int*>(bytes + padded_to_256(input.m * 4));
  return {reinterpret_cast<float*>(bytes), list, list + 1,
          bytes + padded_to_256(input.m * 4) + padded_to_256((input.cols + 1) * 4)};
}

void measure(const Context& context, const MatmulInput& input, float threshold, const LeftSide& left) {
  const cudaStream_t stream = stream_of(context.stream);
  clear_kernel<<<blocks_for(input.cols, 256, 1024), 256, 0, stream>>>(left.flags, input.cols);
  measure_kernel<<<static_cast<unsigned>(input.m), 256, 0, stream>>>(DeviceX(input), input.cols, threshold, left);
  if (threshold > 0) list_kernel<<<1, 1024, 0, stream>>>(static_cast<int>(input.cols), left);
}

void add_outliers(const Context& context, const MatmulInput& input, const MatmulInt8Job& job, const LeftSide& left) {
  with_float_type(input.compute, [&](auto element) {
    using T = decltype(element);
    const dim3 grid(blocks_for(job.rows, kAnyTile), blocks_for(input.m, kAnyTile));
    MatmulOutput out = job.out;
    out.bias = nullptr;
    out.accumulate = true;
    outlier_kernel<T><<<grid, 256, 0, stream_of(context.stream)>>>(DeviceX(input), input.m, input.cols, job.rows, job.w,
                                                                   job.absmax, left, out);
  });
}

DeviceJobs with_weights(const MatmulInt8Job* jobs, int64_t count, int tile_rows) {
  DeviceJobs all = device_jobs(jobs, count, tile_rows);
  for (int64_t j = 0; j < count; ++j)
    all.jobs[j].weight = {reinterpret_cast<const uint8_t*>(jobs[j].w), {.values = jobs[j].absmax}, 0};
  return all;
}

template <typename T>
bool multiply_few_rows(const Context& context, const MatmulInput& input, float threshold, const MatmulInt8Job* jobs,
                       int64_t count) {
  const int64_t limit = few_rows_limit<FewRowsInt8<T>>(context, input.cols);
  // Outlier columns are those of the whole call; of a row alone where bits must not depend on the other rows.
  const int64_t at_once = input.batch_invariant ? 1 : limit;
  if (limit == 0 || (!input.batch_invariant && input.m > limit)) return false;
  FewRowsArgs args{};
  args.jobs = with_weights(jobs, count, kFewRowsTile);
  args.threshold = threshold;
  launch_few_rows_each<FewRowsInt8<T>>(context, input, args, at_once);
  return true;
}

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

void multiply_any(const Context& context, const MatmulInput& input, float threshold, const MatmulInt8Job* jobs,
                  int64_t count) {
  constexpr int64_t kLimit = 65535 * int64_t{kAnyTile};
  const int64_t at_once = input.batch_invariant ? 1 : kLimit;
  for (int64_t first = 0; first < input.m; first += at_once) {
    const MatmulInput part = rows_of(input, first, std::min(at_once, input.m - first));
    const LeftSide left = left_side_at(context.scratch->reserve(left_side_bytes(part)), part);
    measure(context, part, threshold, left);
    for (int64_t j = 0; j < count; ++j) {
      MatmulInt8Job job = jobs[j];
      job.out = output_from(job.out, first, 0);
      const dim3 grid(blocks_for(job.rows, kAnyTile), blocks_for(part.m, kAnyTile));
      any_int8_kernel<<<grid, 256, 0, stream_of(context.stream)>>>(DeviceX(part), part.m, part.cols, job.rows, job.w,
                                                                   job.absmax, left, job.out);
      if (threshold > 0) add_outliers(context, part, job, left);
    }
  }
}

void multiply(const Context& context, const MatmulInput& input, float threshold, const MatmulInt8Job* jobs,
              int64_t count) {
  bool is_regular = context.capability >= 80 && input.cols % 16 == 0 && input.cols < (1 << 24) && input.m <= 0x3fffff;
  for (int64_t j = 0; j < count; ++j)
    is_regular = is_regular && is_aligned(jobs[j].w, 16) && jobs[j].rows <= 0x7fffff00;
  bool is_done = false;
  if (is_regular)
    with_float_type(input.compute, [&](auto element) {
      is_done = multiply_few_rows<decltype(element)>(context, input, threshold, jobs, count);
    });
  if (!is_done && is_regular && suits_tiles(context, input, threshold))
    is_done = input.compute == DType::bf16 ? multiply_tiles<__nv_bfloat16>(context, input, threshold, jobs, count)
                                           : multiply_tiles<__half>(context, input, threshold, jobs, count);
  if (!is_done) multiply_any(context, input, threshold, jobs, count);
}

}  // namespace

void matmul_int8(const Context& context, const MatmulInput& input, float threshold, const MatmulInt8Job* jobs,
                 int64_t count) {
  if (input.m == 0) return;
  for (int64_t first = 0; first < count; first += kMaxJobs)
    multiply(context, input, threshold, jobs + first, std::min<int64_t>(kMaxJobs, count - first));
}

}  // namespace nibble::kernels::cuda
