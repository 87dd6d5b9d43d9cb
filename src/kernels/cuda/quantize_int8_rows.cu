// quantize_int8_rows and dequantize_int8_rows: one row a block of threads.
#include "kernels/cuda/device/int8_row.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

template <typename T>
__global__ void __launch_bounds__(256)
    quantize_kernel(const T* x, int64_t cols, float threshold, int8_t* q, float* absmax, uint8_t* outlier_columns) {
  __shared__ float shared[32];
  const T* row = x + int64_t{blockIdx.x} * cols;
  int8_t* target = q + int64_t{blockIdx.x} * cols;
  float maximum = 0;
#pragma unroll 4
  for (int64_t c = threadIdx.x; c < cols; c += 256) {
    const float value = to_float(from_float<__half>(to_float(row[c])));
    if (!is_outlier(value, threshold))
      maximum = fmaxf(maximum, fabsf(value));
    else if (outlier_columns)
      outlier_columns[c] = 1;
  }
  maximum = block_max(maximum, shared);
  if (threadIdx.x == 0) absmax[blockIdx.x] = maximum;
  const float scale = int8_scale(maximum);
#pragma unroll 4
  for (int64_t c = threadIdx.x; c < cols; c += 256) {
    const float value = to_float(from_float<__half>(to_float(row[c])));
    target[c] = is_outlier(value, threshold) ? int8_t{0} : static_cast<int8_t>(encode_int8(value, scale));
  }
}

template <typename T>
__global__ void __launch_bounds__(256) dequantize_kernel(const int8_t* q, const float* absmax, int64_t cols, T* out) {
  const int8_t* row = q + int64_t{blockIdx.x} * cols;
  T* target = out + int64_t{blockIdx.x} * cols;
  const float scale = absmax[blockIdx.x];
#pragma unroll 4
  for (int64_t c = threadIdx.x; c < cols; c += 256)
    target[c] = from_float<T>(__fmul_rn(__fmul_rn(static_cast<float>(row[c]), scale), 1.0f / 127.0f));
}

}  // namespace

void quantize_int8_rows(const Context& context, const QuantizeInt8RowsArgs& args) {
  if (args.rows == 0) return;
  with_float_type(args.dtype, [&](auto element) {
    using T = decltype(element);
    quantize_kernel<T><<<static_cast<unsigned>(args.rows), 256, 0, stream_of(context.stream)>>>(
        static_cast<const T*>(args.x), args.cols, args.threshold, args.q, args.absmax, args.outlier_columns);
  });
}

void dequantize_int8_rows(const Context& context, const DequantizeInt8RowsArgs& args) {
  if (args.rows == 0 || args.cols == 0) return;
  with_float_type(args.dtype, [&](auto element) {
    using T = decltype(element);
    dequantize_kernel<T><<<static_cast<unsigned>(args.rows), 256, 0, stream_of(context.stream)>>>(
        args.q, args.absmax, args.cols, static_cast<T*>(args.out));
  });
}

}  // namespace nibble::kernels::cuda
