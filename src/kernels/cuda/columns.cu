// scale_columns and sum_columns.
#include "kernels/cuda/device/column_sums.cuh"
#include "kernels/cuda/device/pack.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

/// A thread a column, of every gridDim.y-th row.
template <typename X, typename Out>
__global__ void scale_columns_kernel(ScaleColumnsArgs args) {
  const int64_t column = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (column >= args.cols) return;
  const float scale = args.scale[column], bias = args.bias ? args.bias[column] : 0.0f;
  const X* x = reinterpret_cast<const X*>(args.x);
  Out* out = reinterpret_cast<Out*>(args.out);
  for (int64_t row = blockIdx.y; row < args.rows; row += gridDim.y) {
    const float value = fmaf(to_float(x[row * args.cols + column]), scale, bias);
    Out* to = out + row * args.out_stride + column;
    *to = from_float<Out>(args.accumulate ? to_float(*to) + value : value);
  }
}

template <typename T>
struct ProductTerm {
  const T *x, *y;
  int64_t cols;

  __device__ __forceinline__ ColumnTerm operator()(int64_t row, int64_t column) const {
    const int64_t at = row * cols + column;
    return {to_float(x[at]) * (y ? to_float(y[at]) : 1.0f), 0};
  }
};

}  // namespace

void scale_columns(const Context& context, const ScaleColumnsArgs& args) {
  if (args.rows == 0 || args.cols == 0) return;
  const dim3 grid(blocks_for(args.cols, 256), blocks_for(args.rows, 4, 65535));
  with_activation_type(args.x_dtype, [&](auto x) {
    with_activation_type(args.out_dtype, [&](auto out) {
      scale_columns_kernel<decltype(x), decltype(out)><<<grid, 256, 0, stream_of(context.stream)>>>(args);
    });
  });
}

void sum_columns(const Context& context, const SumColumnsArgs& args) {
  if (args.rows == 0 || args.cols == 0) return;
  void* partials = context.scratch->reserve(column_sums_bytes(args.rows, args.cols));
  with_activation_type(args.dtype, [&](auto element) {
    using T = decltype(element);
    const ProductTerm<T> term{reinterpret_cast<const T*>(args.x), reinterpret_cast<const T*>(args.y), args.cols};
    add_column_sums(term, args.rows, args.cols, partials, args.sums, nullptr, stream_of(context.stream));
  });
}

}  // namespace nibble::kernels::cuda
