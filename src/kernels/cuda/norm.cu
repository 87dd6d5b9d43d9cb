// rms_norm and layer_norm: a block for each row, or a warp where rows are short (the norms of heads).
#include "kernels/cuda/device/async.cuh"
#include "kernels/cuda/device/dependent.cuh"
#include "kernels/cuda/device/pack.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

/// Rows of at most this many columns take a warp each.
constexpr int64_t kShort = 512;
constexpr int kWarps = 4;

/// The threads that share a row, and their sums.
struct WarpTeam {
  __device__ int64_t row() const { return static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; }
  __device__ int index() const { return threadIdx.x % 32; }
  __device__ int size() const { return 32; }
  __device__ float sum(float x) const { return warp_sum(x); }
};
struct BlockTeam {
  float* shared;
  __device__ int64_t row() const { return blockIdx.x; }
  __device__ int index() const { return threadIdx.x; }
  __device__ int size() const { return blockDim.x; }
  __device__ float sum(float x) const { return block_sum(x, shared); }
};

template <typename X, typename Out, typename Team>
__device__ void rms_row(const Team& team, const RmsNormArgs& args) {
  if (team.row() >= args.rows) return;
  const X* from = static_cast<const X*>(args.x) + team.row() * args.cols;
  Out* out = static_cast<Out*>(args.out) + team.row() * args.cols;
  const auto x = [&](int64_t c) { return to_float(from[c]); };
  float squares = 0;
  for (int64_t c = team.index(); c < args.cols; c += team.size()) squares = fmaf(x(c), x(c), squares);
  const float mean = team.sum(squares) / static_cast<float>(args.cols);
  const float scale = 1.0f / sqrtf(mean + args.eps);
  for (int64_t c = team.index(); c < args.cols; c += team.size()) {
    const float value = x(c) * scale * (args.weight[c] + args.weight_offset);
    out[c] = from_float<Out>(args.accumulate ? to_float(out[c]) + value : value);
  }
}

template <typename X, typename Out, typename Team>
__device__ void layer_row(const Team& team, const LayerNormArgs& args) {
  if (team.row() >= args.rows) return;
  const X* from = static_cast<const X*>(args.x) + team.row() * args.cols;
  Out* out = static_cast<Out*>(args.out) + team.row() * args.cols;
  const auto x = [&](int64_t c) { return to_float(from[c]); };
  const int64_t set = team.row() % args.sets * args.cols;
  const auto cols = static_cast<float>(args.cols);
  float total = 0;
  for (int64_t c = team.index(); c < args.cols; c += team.size()) total += x(c);
  const float mean = team.sum(total) / cols;
  float squares = 0;
  for (int64_t c = team.index(); c < args.cols; c += team.size()) squares = fmaf(x(c) - mean, x(c) - mean, squares);
  const float scale = 1.0f / sqrtf(team.sum(squares) / cols + args.eps);
  for (int64_t c = team.index(); c < args.cols; c += team.size()) {
    const float value = (x(c) - mean) * scale * args.weight[set + c];
    out[c] = from_float<Out>(args.bias ? value + args.bias[set + c] : value);
  }
}

template <typename X, typename Out>
__global__ void rms_norm_short(RmsNormArgs args) {
  wait_for_previous();
  rms_row<X, Out>(WarpTeam{}, args);
}
template <typename X, typename Out>
__global__ void rms_norm_long(RmsNormArgs args) {
  __shared__ float shared[32];
  wait_for_previous();
  rms_row<X, Out>(BlockTeam{shared}, args);
}
template <typename X, typename Out>
__global__ void layer_norm_short(LayerNormArgs args) {
  wait_for_previous();
  layer_row<X, Out>(WarpTeam{}, args);
}
template <typename X, typename Out>
__global__ void layer_norm_long(LayerNormArgs args) {
  __shared__ float shared[32];
  wait_for_previous();
  layer_row<X, Out>(BlockTeam{shared}, args);
}

constexpr int kVectorThreads = 512;

/// rms_norm of a row that a block holds in registers: kVectors times four columns a thread.
template <typename X, typename Out, int kVectors>
__global__ void __launch_bounds__(kVectorThreads) rms_norm_vectors(RmsNormArgs args) {
  __shared__ float sums[kVectorThreads / 32];
  allow_next_launch_where_possible();  // a product's weights travel while the launch before ends
  const int cols = static_cast<int>(args.cols);
  const X* x = static_cast<const X*>(args.x) + static_cast<int64_t>(blockIdx.x) * cols;
  Out* out = static_cast<Out*>(args.out) + static_cast<int64_t>(blockIdx.x) * cols;
  float weights[kVectors][4], values[kVectors][4];
  int column[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    column[v] = (v * kVectorThreads + static_cast<int>(threadIdx.x)) * 4;
    if (column[v] < cols) load_pack(args.weight + column[v], weights[v]);
  }
  wait_for_previous();
  float squares = 0;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    if (column[v] >= cols) continue;
    load_pack(x + column[v], values[v]);
#pragma unroll
    for (int i = 3; i >= 0; --i) squares = fmaf(values[v][i], values[v][i], squares);
  }
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = squares;
  __syncthreads();
  const int lane = threadIdx.x % 32;
  const float total = warp_sum(lane < kVectorThreads / 32 ? sums[lane] : 0.0f);
  const float scale = 1.0f / sqrtf(total / static_cast<float>(cols) + args.eps);
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    if (column[v] >= cols) continue;
    float before[4] = {0, 0, 0, 0};
    if (args.accumulate) load_pack(out + column[v], before);
#pragma unroll
    for (int i = 0; i < 4; ++i) before[i] += values[v][i] * scale * (weights[v][i] + args.weight_offset);
    store_pack(out + column[v], before);
  }
}

/// Rows that rms_norm_vectors takes.
bool has_vectors(const RmsNormArgs& args) {
  return args.cols % 4 == 0 && args.cols <= 4 * 4 * kVectorThreads && is_packed(args.x) && is_packed(args.weight) &&
         is_packed(args.out);
}

/// Calls body(X{}, Out{}) with the types that args name.
template <typename Args, typename Body>
void with_types(const Args& args, const Body& body) {
  with_activation_type(args.x_dtype,
                       [&](auto x) { with_activation_type(args.out_dtype, [&](auto out) { body(x, out); }); });
}

/// Threads of a long row; they do not depend on the number of rows, so that a row's bits do not.
unsigned row_threads(int64_t cols) { return cols >= 2048 ? 1024 : 256; }

}  // namespace

void rms_norm(const Context& context, const RmsNormArgs& args) {
  if (args.rows == 0) return;
  const auto rows = static_cast<unsigned>(args.rows);
  with_types(args, [&](auto x, auto out) {
    using X = decltype(x);
    using Out = decltype(out);
    if (args.cols <= kShort)
      launch_dependent(context, rms_norm_short<X, Out>, blocks_for(args.rows, kWarps), kWarps * 32, 0, args);
    else if (has_vectors(args) && args.cols <= 4 * 2 * kVectorThreads)
      launch_dependent(context, rms_norm_vectors<X, Out, 2>, rows, kVectorThreads, 0, args);
    else if (has_vectors(args))
      launch_dependent(context, rms_norm_vectors<X, Out, 4>, rows, kVectorThreads, 0, args);
    else
      launch_dependent(context, rms_norm_long<X, Out>, rows, row_threads(args.cols), 0, args);
  });
}

void layer_norm(const Context& context, const LayerNormArgs& args) {
  if (args.rows == 0) return;
  with_types(args, [&](auto x, auto out) {
    using X = decltype(x);
    using Out = decltype(out);
    if (args.cols <= kShort)
      launch_dependent(context, layer_norm_short<X, Out>, blocks_for(args.rows, kWarps), kWarps * 32, 0, args);
    else
      launch_dependent(context, layer_norm_long<X, Out>, static_cast<unsigned>(args.rows), row_threads(args.cols), 0,
                       args);
  });
}

}  // namespace nibble::kernels::cuda
