// rms_norm_gradient and layer_norm_gradient: a block a row for x, sums of columns for the weights.
#include "kernels/cuda/device/column_sums.cuh"
#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 256;

/// What the columns' sums need of a row.
struct RowStatistics {
  float mean, scale;
};

template <typename T>
__device__ __forceinline__ void put(T* to, float value, bool accumulate) {
  *to = from_float<T>(accumulate ? to_float(*to) + value : value);
}

// y = x s w with s = (mean(x^2) + eps)^-1/2: dx = s (w dy - x s^2 mean(x w dy)).
template <typename T>
__global__ void __launch_bounds__(kThreads) rms_rows(RmsNormGradientArgs args, RowStatistics* statistics) {
  __shared__ float shared[32];
  const int64_t row = blockIdx.x;
  const T* x = reinterpret_cast<const T*>(args.x) + row * args.cols;
  const T* dy = reinterpret_cast<const T*>(args.dy) + row * args.cols;
  float squares = 0, product = 0;
  for (int64_t c = threadIdx.x; c < args.cols; c += kThreads) {
    const float value = to_float(x[c]);
    squares = fmaf(value, value, squares);
    product = fmaf(value * (args.weight[c] + args.weight_offset), to_float(dy[c]), product);
  }
  squares = block_sum(squares, shared);
  product = block_sum(product, shared);
  const auto cols = static_cast<float>(args.cols);
  const float scale = 1.0f / sqrtf(squares / cols + args.eps);
  const float shrink = scale * scale * product / cols;
  T* dx = reinterpret_cast<T*>(args.dx) + row * args.cols;
  for (int64_t c = threadIdx.x; c < args.cols; c += kThreads) {
    const float weight = args.weight[c] + args.weight_offset;
    put(dx + c, scale * fmaf(weight, to_float(dy[c]), -to_float(x[c]) * shrink), args.accumulate);
  }
  if (statistics && threadIdx.x == 0) statistics[row] = {0, scale};
}

// y = n w + b with n = (x - mean) s: dx = s (w dy - mean(w dy) - n mean(n w dy)).
template <typename T>
__global__ void __launch_bounds__(kThreads) layer_rows(LayerNormGradientArgs args, RowStatistics* statistics) {
  __shared__ float shared[32];
  const int64_t row = blockIdx.x;
  const T* x = reinterpret_cast<const T*>(args.x) + row * args.cols;
  const T* dy = reinterpret_cast<const T*>(args.dy) + row * args.cols;
  const float* weight = args.weight + row % args.sets * args.cols;
  const auto cols = static_cast<float>(args.cols);
  float sum = 0, squares = 0, total = 0, product = 0;
  for (int64_t c = threadIdx.x; c < args.cols; c += kThreads) sum += to_float(x[c]);
  const float mean = block_sum(sum, shared) / cols;
  for (int64_t c = threadIdx.x; c < args.cols; c += kThreads) {
    const float value = to_float(x[c]) - mean, g = weight[c] * to_float(dy[c]);
    squares = fmaf(value, value, squares);
    total += g;
    product = fmaf(g, value, product);
  }
  squares = block_sum(squares, shared);
  total = block_sum(total, shared);
  product = block_sum(product, shared);
  const float scale = 1.0f / sqrtf(squares / cols + args.eps);
  product *= scale;
  T* dx = reinterpret_cast<T*>(args.dx) + row * args.cols;
  for (int64_t c = threadIdx.x; c < args.cols; c += kThreads) {
    const float normed = (to_float(x[c]) - mean) * scale;
    put(dx + c, scale * (weight[c] * to_float(dy[c]) - total / cols - normed * product / cols), args.accumulate);
  }
  if (statistics && threadIdx.x == 0) statistics[row] = {mean, scale};
}

/// dweight: the sum of normed x dy; dbias: that of dy. Rows of all sets of weights stand side by side.
template <typename T>
struct NormTerm {
  const T *x, *dy;
  int64_t width, cols, sets;  // width: of a row of sets
  const RowStatistics* statistics;

  __device__ __forceinline__ ColumnTerm operator()(int64_t row, int64_t column) const {
    const int64_t at = row * width + column;
    const RowStatistics& of = statistics[row * sets + (sets == 1 ? 0 : column / cols)];
    const float g = to_float(dy[at]);
    return {(to_float(x[at]) - of.mean) * of.scale * g, g};
  }
};

/// Rows by `kernel`, then columns, if any are wanted.
template <typename T, typename Args>
void launch(const Context& context, const Args& args, void (*kernel)(Args, RowStatistics*), float* dbias,
            int64_t sets) {
  const cudaStream_t stream = stream_of(context.stream);
  const int64_t rows = args.rows / sets, width = args.cols * sets;
  RowStatistics* statistics = nullptr;
  if (args.dweight || dbias)
    statistics = static_cast<RowStatistics*>(context.scratch->reserve(
        args.rows * static_cast<int64_t>(sizeof(RowStatistics)) + column_sums_bytes(rows, width)));
  kernel<<<static_cast<unsigned>(args.rows), kThreads, 0, stream>>>(args, statistics);
  if (!statistics) return;
  const NormTerm<T> term{
      reinterpret_cast<const T*>(args.x), reinterpret_cast<const T*>(args.dy), width, args.cols, sets, statistics};
  add_column_sums(term, rows, width, statistics + args.rows, args.dweight, dbias, stream);
}

}  // namespace

void rms_norm_gradient(const Context& context, const RmsNormGradientArgs& args) {
  if (args.rows == 0) return;
  with_float_type(args.dtype, [&](auto element) {
    using T = decltype(element);
    launch<T>(context, args, rms_rows<T>, nullptr, 1);
  });
}

void layer_norm_gradient(const Context& context, const LayerNormGradientArgs& args) {
  if (args.rows == 0) return;
  with_float_type(args.dtype, [&](auto element) {
    using T = decltype(element);
    launch<T>(context, args, layer_rows<T>, args.dbias, args.sets);
  });
}

}  // namespace nibble::kernels::cuda
