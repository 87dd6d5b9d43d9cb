// input_gradient and weight_gradient: decoded panels and cuBLASLt for bf16, a tiled fp32 product for everything else.
#include <algorithm>
#include <bit>

#include "kernels/cuda/dense_library.h"
#include "kernels/cuda/device/absmax.cuh"
#include "kernels/cuda/device/vector.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kTile = 64, kStep = 32, kThreads = 256;

/// One element of a weight at a time.
struct WeightElements {
  WeightView w;
  Absmax absmax;
  float book[16];
  int64_t cols;

  __device__ float operator()(int64_t row, int64_t col) const {
    const int64_t i = row * cols + col;
    switch (w.kind) {
      case WeightView::Kind::four_bit: {
        const uint8_t code = static_cast<const uint8_t*>(w.data)[i / 2] >> (i % 2 == 0 ? 4 : 0) & 15;
        return __fmul_rn(book[code], absmax_at(absmax, i / w.block));
      }
      case WeightView::Kind::int8:
        return static_cast<const int8_t*>(w.data)[i] * w.row_absmax[row] * (1.0f / 127.0f);
      default:
        break;
    }
    if (w.dtype == DType::bf16) return to_float(static_cast<const __nv_bfloat16*>(w.data)[i]);
    if (w.dtype == DType::f16) return to_float(static_cast<const __half*>(w.data)[i]);
    return static_cast<const float*>(w.data)[i];
  }
};

WeightElements elements_of(const WeightView& w, int64_t cols) {
  WeightElements elements{w, {}, {}, cols};
  if (w.absmax) elements.absmax = *w.absmax;
  if (w.code_book) std::copy_n(w.code_book, 16, elements.book);
  return elements;
}

template <typename T>
struct MatrixElements {
  const T* data;
  int64_t row_stride, col_stride;

  __device__ float operator()(int64_t row, int64_t col) const {
    return to_float(data[row * row_stride + col * col_stride]);
  }
};

/// out (m, n) (=, or +=) sum over k of a(i, k) b(k, j), in fp32, in the order of k.
template <typename T, typename A, typename B>
__global__ void __launch_bounds__(kThreads)
    product_kernel(const __grid_constant__ A a, const __grid_constant__ B b, int64_t m, int64_t n, int64_t k_count,
                   T* out, bool accumulate) {
  __shared__ float as[kStep][kTile + 1], bs[kStep][kTile + 1];
  const int64_t first_column = int64_t{blockIdx.x} * kTile, first_row = int64_t{blockIdx.y} * kTile;
  const int column = threadIdx.x % 16, row = threadIdx.x / 16;
  float sums[4][4] = {};
  for (int64_t k = 0; k < k_count; k += kStep) {
#pragma unroll
    for (int j = 0; j < kTile * kStep / kThreads; ++j) {
      const int at = threadIdx.x + kThreads * j, i = at % kTile, c = at / kTile;
      const bool has_k = k + c < k_count;
      as[c][i] = has_k && first_row + i < m ? a(first_row + i, k + c) : 0.0f;
      bs[c][i] = has_k && first_column + i < n ? b(k + c, first_column + i) : 0.0f;
    }
    __syncthreads();
#pragma unroll 8
    for (int c = 0; c < kStep; ++c)
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(as[c][row + 16 * i], bs[c][column + 16 * j], sums[i][j]);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t r = first_row + row + 16 * i, c = first_column + column + 16 * j;
      if (r >= m || c >= n) continue;
      T* to = out + r * n + c;
      *to = from_float<T>(accumulate ? to_float(*to) + sums[i][j] : sums[i][j]);
    }
}

template <typename T, typename A, typename B>
void launch_product(const Context& context, A a, const B& b, int64_t m, int64_t n, int64_t k_count, T* out,
                    bool accumulate) {
  constexpr int64_t kLimit = 65535 * int64_t{kTile};  // rows of a grid
  for (int64_t i = 0; i < m; i += kLimit) {
    A part = a;
    part.data += i * a.row_stride;
    const int64_t rows = std::min(kLimit, m - i);
    product_kernel<T, A, B>
        <<<dim3(blocks_for(n, kTile), blocks_for(rows, kTile)), kThreads, 0, stream_of(context.stream)>>>(
            part, b, rows, n, k_count, out + i * n, accumulate);
  }
}

template <typename T>
void input_gradient_slowly(const Context& context, const InputGradientArgs& args) {
  const MatrixElements<T> dy{reinterpret_cast<const T*>(args.dy), args.dy_stride, 1};
  launch_product(context, dy, elements_of(args.w, args.cols), args.m, args.cols, args.rows,
                 reinterpret_cast<T*>(args.dx), args.accumulate);
}

/// Decoded at a time. Panels add up in bf16, so that most weights should be one.
constexpr int64_t kPanelBytes = int64_t{128} << 20;

/// The weight's columns are those of the result; panels are rows, whose products add up.
int64_t panel_rows_of(const InputGradientArgs& args) {
  const int64_t unit = args.w.kind == WeightView::Kind::four_bit ? args.w.block * quant::kNestedBlock : 1;
  int64_t rows = std::max<int64_t>(1, kPanelBytes / (2 * args.cols)) / 256 * 256;
  if (rows >= args.rows || rows == 0) return args.rows;
  while (rows < args.rows && rows * args.cols % unit != 0) rows += 256;
  return std::min(rows, args.rows);
}

template <typename T>
__global__ void to_bf16_kernel(const T* from, __nv_bfloat16* to, int64_t count) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride)
    to[i] = from_float<__nv_bfloat16>(to_float(from[i]));
}

/// Rows [first, first + rows) of the weight in bf16; where they lie already, or in `panel`.
const void* decoded(const Context& context, const InputGradientArgs& args, int64_t first, int64_t rows, void* panel) {
  const int64_t at = first * args.cols, count = rows * args.cols;
  const WeightView& w = args.w;
  if (w.kind == WeightView::Kind::four_bit) {
    Absmax absmax = *w.absmax;
    const int64_t block = at / w.block;
    if (absmax.values) {
      absmax.values += block;
    } else {
      absmax.codes += block;
      absmax.nested_absmax += block / quant::kNestedBlock;
    }
    dequantize_4bit(context, {static_cast<const uint8_t*>(w.data) + at / 2, absmax, count, w.block, w.code_book, panel,
                              DType::bf16});
    return panel;
  }
  if (w.kind == WeightView::Kind::int8) {
    dequantize_int8_rows(
        context, {static_cast<const int8_t*>(w.data) + at, w.row_absmax + first, rows, args.cols, panel, DType::bf16});
    return panel;
  }
  if (w.dtype == DType::bf16) return static_cast<const __nv_bfloat16*>(w.data) + at;
  with_float_type(w.dtype, [&](auto element) {
    using T = decltype(element);
    to_bf16_kernel<T><<<blocks_for(count, 1024, 65536), 256, 0, stream_of(context.stream)>>>(
        static_cast<const T*>(w.data) + at, static_cast<__nv_bfloat16*>(panel), count);
  });
  return panel;
}

/// fp32 that is multiplied as bf16.
bool is_rounded(const InputGradientArgs& args) { return args.dtype == DType::f32 && args.compute == DType::bf16; }

bool is_regular(const InputGradientArgs& args) {
  return (args.dtype == DType::bf16 || is_rounded(args)) && has_dense_library() && args.rows % 8 == 0 &&
         args.cols % 8 == 0 && args.dy_stride % 8 == 0 && is_aligned(args.dy, 16) && is_aligned(args.dx, 16) &&
         (args.w.kind != WeightView::Kind::dense || is_aligned(args.w.data, 16));
}

/// False if the library has nothing for the shape: then dx may hold a part, and the caller begins again.
bool input_gradient_by_library(const Context& context, const InputGradientArgs& args) {
  const int64_t panel_rows = panel_rows_of(args);
  const int64_t count = is_rounded(args) ? (args.m - 1) * args.dy_stride + args.rows : 0,
                dy_bytes = (count * 2 + 255) / 256 * 256;
  const bool is_decoded = args.w.kind != WeightView::Kind::dense || args.w.dtype != DType::bf16;
  auto* scratch = static_cast<uint8_t*>(
      context.scratch->reserve(kDenseLibraryBytes + dy_bytes + (is_decoded ? panel_rows * args.cols * 2 : 0)));
  auto* rounded = reinterpret_cast<__nv_bfloat16*>(scratch + kDenseLibraryBytes);
  if (count > 0)
    to_bf16_kernel<float>
        <<<blocks_for(count, 1024, 65536), 256, 0, stream_of(context.stream)>>>(args.dy, rounded, count);
  const auto* dy = count > 0 ? rounded : reinterpret_cast<const __nv_bfloat16*>(args.dy);
  for (int64_t first = 0; first < args.rows; first += panel_rows) {
    const int64_t rows = std::min(panel_rows, args.rows - first);
    const void* w = decoded(context, args, first, rows, scratch + kDenseLibraryBytes + dy_bytes);
    DenseProduct product;
    product.a = {dy + first, args.dy_stride, false};
    product.b = {w, args.cols, false};
    product.m = args.m;
    product.n = args.cols;
    product.k = rows;
    product.out = args.dx;
    product.out_stride = args.cols;
    product.out_dtype = args.dtype;
    product.accumulate = args.accumulate || first > 0;
    if (!dense_product(context, product, scratch)) return false;
  }
  return true;
}

}  // namespace

void input_gradient(const Context& context, const InputGradientArgs& args) {
  if (args.m == 0 || args.cols == 0) return;
  if (is_regular(args) && input_gradient_by_library(context, args)) return;
  args.dtype == DType::bf16 ? input_gradient_slowly<__nv_bfloat16>(context, args)
                            : input_gradient_slowly<float>(context, args);
}

void weight_gradient(const Context& context, const WeightGradientArgs& args) {
  if (args.rows == 0 || args.cols == 0) return;
  const bool is_regular = args.dtype == DType::bf16 && has_dense_library() && args.rows % 8 == 0 &&
                          args.cols % 8 == 0 && is_aligned(args.dy, 16) && is_aligned(args.x, 16) &&
                          is_aligned(args.dw, 16);
  if (is_regular) {
    DenseProduct product;
    product.a = {args.dy, args.rows, true};
    product.b = {args.x, args.cols, false};
    product.m = args.rows;
    product.n = args.cols;
    product.k = args.m;
    product.out = args.dw;
    product.out_stride = args.cols;
    product.out_dtype = DType::f32;
    product.accumulate = args.accumulate;
    if (dense_product(context, product, context.scratch->reserve(kDenseLibraryBytes))) return;
  }
  with_float_type(args.dtype, [&](auto element) {
    using T = decltype(element);
    const MatrixElements<T> dy{reinterpret_cast<const T*>(args.dy), 1, args.rows};
    const MatrixElements<T> x{reinterpret_cast<const T*>(args.x), args.cols, 1};
    launch_product(context, dy, x, args.rows, args.cols, args.m, args.dw, args.accumulate);
  });
}

}  // namespace nibble::kernels::cuda
