// matmul_int8: LLM.int8(), which kernel takes a call, and the one for any shape. Nothing waits for the host.
#include "kernels/cuda/matmul_int8.h"

#include "kernels/cuda/device/any_shape.cuh"
#include "kernels/cuda/device/int8_row.cuh"
#include "kernels/cuda/device/tile_x.cuh"
#include "kernels/cuda/device/vector.cuh"
#include "kernels/cuda/entries.h"

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

bool is_regular(const Context& context, const MatmulInput& input, const MatmulInt8Job* jobs, int64_t count) {
  bool is_good = context.capability >= 80 && input.cols % 16 == 0 && input.cols < (1 << 24) && input.m <= 0x3fffff;
  for (int64_t j = 0; j < count; ++j) is_good = is_good && is_aligned(jobs[j].w, 16) && jobs[j].rows <= 0x7fffff00;
  return is_good;
}

void multiply(const Context& context, const MatmulInput& input, float threshold, const MatmulInt8Job* jobs,
              int64_t count) {
  if (is_regular(context, input, jobs, count) &&
      (multiply_few_int8(context, {.input = input, .jobs = jobs, .count = count, .threshold = threshold}) ||
       multiply_tiles_int8(context, input, threshold, jobs, count)))
    return;
  multiply_any(context, input, threshold, jobs, count);
}

}  // namespace

void matmul_int8(const Context& context, const MatmulInput& input, float threshold, const MatmulInt8Job* jobs,
                 int64_t count) {
  if (input.m == 0) return;
  for (int64_t first = 0; first < count; first += kMaxJobs)
    multiply(context, input, threshold, jobs + first, std::min<int64_t>(kMaxJobs, count - first));
}

bool matmul_int8_fused(const Context& context, const FusedInt8Args& args) {
  if (args.count > kMaxJobs || !is_regular(context, args.input, args.jobs, args.count) ||
      (args.norm_weight && (!is_aligned(args.input.x, 16) || !is_aligned(args.norm_weight, 16))))
    return false;
  return multiply_few_int8(context, args);
}

}  // namespace nibble::kernels::cuda
