// matmul for any shape, alignment and compute type: plain fp32 products of decoded elements in the order of the
// columns.
#pragma once

#include "kernels/cuda/device/job.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kAnyTile = 64, kAnyStep = 32;

/// Decode: float operator()(int64_t row, int64_t column), in fp32; rounded to T here, as x is. T float: nothing is.
template <typename T, typename Decode>
__global__ void __launch_bounds__(256)
    any_shape_kernel(const DeviceX x, int64_t m, int64_t cols, int64_t rows, const __grid_constant__ Decode decode,
                     const __grid_constant__ MatmulOutput out) {
  __shared__ float xs[kAnyStep][kAnyTile + 1], ws[kAnyStep][kAnyTile + 1];
  const int64_t first_row = int64_t{blockIdx.x} * kAnyTile, first_x = int64_t{blockIdx.y} * kAnyTile;
  const int nx = threadIdx.x % 16, ix = threadIdx.x / 16;
  float sums[4][4] = {};
  for (int64_t k = 0; k < cols; k += kAnyStep) {
#pragma unroll
    for (int j = 0; j < kAnyTile * kAnyStep / 256; ++j) {
      const int at = threadIdx.x + 256 * j, r = at / kAnyStep, c = at % kAnyStep;
      const bool has_column = k + c < cols;
      xs[c][r] = has_column && first_x + r < m ? to_float(from_float<T>(x[(first_x + r) * cols + k + c])) : 0.0f;
      ws[c][r] = has_column && first_row + r < rows ? to_float(from_float<T>(decode(first_row + r, k + c))) : 0.0f;
    }
    __syncthreads();
#pragma unroll 8
    for (int c = 0; c < kAnyStep; ++c)
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

inline constexpr int kAnyFewRows = 4;

/// The same for at most kAnyFewRows rows of x: a warp a weight row, lanes over columns.
template <typename T, typename Decode>
__global__ void __launch_bounds__(256)
    any_shape_few_kernel(const DeviceX x, int m, int64_t cols, int64_t rows, const __grid_constant__ Decode decode,
                         const __grid_constant__ MatmulOutput out) {
  const int lane = threadIdx.x % 32;
  const int64_t row = int64_t{blockIdx.x} * 8 + threadIdx.x / 32;
  if (row >= rows) return;
  float sums[kAnyFewRows] = {};
#pragma unroll 4
  for (int64_t c = lane; c < cols; c += 32) {
    const float w = to_float(from_float<T>(decode(row, c)));
#pragma unroll
    for (int i = 0; i < kAnyFewRows; ++i)
      if (i < m) sums[i] = fmaf(to_float(from_float<T>(x[i * cols + c])), w, sums[i]);
  }
#pragma unroll
  for (int i = 0; i < kAnyFewRows; ++i) {
    if (i >= m) break;
    const float sum = warp_sum(sums[i]);
    if (lane == 0) put(out, i, row, sum);
  }
}

template <typename Decode>
void multiply_any_shape(const Context& context, const MatmulInput& input, int64_t rows, const Decode& decode,
                        const MatmulOutput& out) {
  const cudaStream_t stream = stream_of(context.stream);
  with_float_type(input.compute, [&](auto element) {
    using T = decltype(element);
    if (input.m <= kAnyFewRows && !input.batch_invariant) {
      any_shape_few_kernel<T><<<blocks_for(rows, 8), 256, 0, stream>>>(DeviceX(input), static_cast<int>(input.m),
                                                                       input.cols, rows, decode, out);
      return;
    }
    constexpr int64_t kLimit = 65535 * int64_t{kAnyTile};
    for (int64_t i = 0; i < input.m; i += kLimit) {
      const MatmulInput part = rows_of(input, i, input.m - i < kLimit ? input.m - i : kLimit);
      const dim3 grid(blocks_for(rows, kAnyTile), blocks_for(part.m, kAnyTile));
      any_shape_kernel<T>
          <<<grid, 256, 0, stream>>>(DeviceX(part), part.m, input.cols, rows, decode, output_from(out, i, 0));
    }
  });
}

}  // namespace nibble::kernels::cuda
