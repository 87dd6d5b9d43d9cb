// rms_norm_gradient and layer_norm_gradient: a block a row for x, a thread a column for the weights.
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
  const auto cols = static_cast<float>(args.cols);
  float sum = 0, squares = 0, total = 0, product = 0;
  for (int64_t c = threadIdx.x; c < args.cols; c += kThreads) sum += to_float(x[c]);
  const float mean = block_sum(sum, shared) / cols;
  for (int64_t c = threadIdx.x; c < args.cols; c += kThreads) {
    const float value = to_float(x[c]) - mean, g = args.weight[c] * to_float(dy[c]);
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
    put(dx + c, scale * (args.weight[c] * to_float(dy[c]) - total / cols - normed * product / cols), args.accumulate);
  }
  if (statistics && threadIdx.x == 0) statistics[row] = {mean, scale};
}

/// dweight += sum of normed x dy, dbias += sum of dy; rows in order.
template <typename T>
__global__ void column_sums(const T* x, const T* dy, int64_t rows, int64_t cols, const RowStatistics* statistics,
                            float* dweight, float* dbias) {
  const int64_t c = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (c >= cols) return;
  float weight = 0, bias = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const float g = to_float(dy[r * cols + c]);
    weight = fmaf((to_float(x[r * cols + c]) - statistics[r].mean) * statistics[r].scale, g, weight);
    bias += g;
  }
  if (dweight) dweight[c] += weight;
  if (dbias) dbias[c] += bias;
}

/// Rows by `kernel`, then columns, if any are wanted.
template <typename T, typename Args>
void launch(const Context& context, const Args& args, void (*kernel)(Args, RowStatistics*), float* dbias) {
  const cudaStream_t stream = stream_of(context.stream);
  RowStatistics* statistics = nullptr;
  if (args.dweight || dbias)
    statistics =
        static_cast<RowStatistics*>(context.scratch->reserve(args.rows * static_cast<int64_t>(sizeof(RowStatistics))));
  kernel<<<static_cast<unsigned>(args.rows), kThreads, 0, stream>>>(args, statistics);
  if (statistics)
    column_sums<T><<<blocks_for(args.cols, 64), 64, 0, stream>>>(reinterpret_cast<const T*>(args.x),
                                                                 reinterpret_cast<const T*>(args.dy), args.rows,
                                                                 args.cols, statistics, args.dweight, dbias);
}

}  // namespace

void rms_norm_gradient(const Context& context, const RmsNormGradientArgs& args) {
  if (args.rows == 0) return;
  with_float_type(args.dtype, [&](auto element) {
    using T = decltype(element);
    launch<T>(context, args, rms_rows<T>, nullptr);
  });
}

void layer_norm_gradient(const Context& context, const LayerNormGradientArgs& args) {
  if (args.rows == 0) return;
  with_float_type(args.dtype, [&](auto element) {
    using T = decltype(element);
    launch<T>(context, args, layer_rows<T>, args.dbias);
  });
}

}  // namespace nibble::kernels::cuda
