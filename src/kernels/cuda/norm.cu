// rms_norm and layer_norm: a block for each row, or a warp where rows are short (the norms of heads).
#include "kernels/cuda/device/dependent.cuh"
#include "kernels/cuda/device/element.cuh"
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

template <typename Team>
__device__ void rms_row(const Team& team, const RmsNormArgs& args) {
  if (team.row() >= args.rows) return;
  const float* x = args.x + team.row() * args.cols;
  float* out = args.out + team.row() * args.cols;
  float squares = 0;
  for (int64_t c = team.index(); c < args.cols; c += team.size()) squares = fmaf(x[c], x[c], squares);
  const float mean = team.sum(squares) / static_cast<float>(args.cols);
  const float scale = 1.0f / sqrtf(mean + args.eps);
  for (int64_t c = team.index(); c < args.cols; c += team.size()) {
    const float value = x[c] * scale * (args.weight[c] + args.weight_offset);
    out[c] = args.accumulate ? out[c] + value : value;
  }
}

template <typename Team>
__device__ void layer_row(const Team& team, const LayerNormArgs& args) {
  if (team.row() >= args.rows) return;
  const float* x = args.x + team.row() * args.cols;
  float* out = args.out + team.row() * args.cols;
  const int64_t set = team.row() % args.sets * args.cols;
  const auto cols = static_cast<float>(args.cols);
  float total = 0;
  for (int64_t c = team.index(); c < args.cols; c += team.size()) total += x[c];
  const float mean = team.sum(total) / cols;
  float squares = 0;
  for (int64_t c = team.index(); c < args.cols; c += team.size()) squares = fmaf(x[c] - mean, x[c] - mean, squares);
  const float scale = 1.0f / sqrtf(team.sum(squares) / cols + args.eps);
  for (int64_t c = team.index(); c < args.cols; c += team.size()) {
    const float value = (x[c] - mean) * scale * args.weight[set + c];
    out[c] = args.bias ? value + args.bias[set + c] : value;
  }
}

__global__ void rms_norm_short(RmsNormArgs args) {
  wait_for_previous();
  rms_row(WarpTeam{}, args);
}
__global__ void rms_norm_long(RmsNormArgs args) {
  __shared__ float shared[32];
  wait_for_previous();
  rms_row(BlockTeam{shared}, args);
}
__global__ void layer_norm_short(LayerNormArgs args) {
  wait_for_previous();
  layer_row(WarpTeam{}, args);
}
__global__ void layer_norm_long(LayerNormArgs args) {
  __shared__ float shared[32];
  wait_for_previous();
  layer_row(BlockTeam{shared}, args);
}

constexpr int kVectorThreads = 512;

/// rms_norm of a row that a block holds in registers: kVectors times four columns a thread.
template <int kVectors>
__global__ void __launch_bounds__(kVectorThreads) rms_norm_vectors(RmsNormArgs args) {
  __shared__ float sums[kVectorThreads / 32];
  const int cols = static_cast<int>(args.cols);
  const float* x = args.x + static_cast<int64_t>(blockIdx.x) * cols;
  float* out = args.out + static_cast<int64_t>(blockIdx.x) * cols;
  float4 weights[kVectors], values[kVectors];
  int column[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    column[v] = (v * kVectorThreads + static_cast<int>(threadIdx.x)) * 4;
    if (column[v] < cols) weights[v] = *reinterpret_cast<const float4*>(args.weight + column[v]);
  }
  wait_for_previous();
  float squares = 0;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    if (column[v] >= cols) continue;
    const float4 value = values[v] = *reinterpret_cast<const float4*>(x + column[v]);
    squares = fmaf(value.x, value.x, fmaf(value.y, value.y, fmaf(value.z, value.z, fmaf(value.w, value.w, squares))));
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
    const float offset = args.weight_offset;
    float4 result =
        make_float4(values[v].x * scale * (weights[v].x + offset), values[v].y * scale * (weights[v].y + offset),
                    values[v].z * scale * (weights[v].z + offset), values[v].w * scale * (weights[v].w + offset));
    auto* to = reinterpret_cast<float4*>(out + column[v]);
    if (args.accumulate) {
      const float4 before = *to;
      result = make_float4(before.x + result.x, before.y + result.y, before.z + result.z, before.w + result.w);
    }
    *to = result;
  }
}

/// Rows that rms_norm_vectors takes.
bool has_vectors(const RmsNormArgs& args) {
  const auto is_aligned = [](const float* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  return args.cols % 4 == 0 && args.cols <= 4 * 4 * kVectorThreads && is_aligned(args.x) && is_aligned(args.weight) &&
         is_aligned(args.out);
}

/// Threads of a long row; they do not depend on the number of rows, so that a row's bits do not.
unsigned row_threads(int64_t cols) { return cols >= 2048 ? 1024 : 256; }

}  // namespace

void rms_norm(const Context& context, const RmsNormArgs& args) {
  if (args.rows == 0) return;
  const auto rows = static_cast<unsigned>(args.rows);
  if (args.cols <= kShort)
    launch_dependent(context, rms_norm_short, blocks_for(args.rows, kWarps), kWarps * 32, 0, args);
  else if (has_vectors(args) && args.cols <= 4 * 2 * kVectorThreads)
    launch_dependent(context, rms_norm_vectors<2>, rows, kVectorThreads, 0, args);
  else if (has_vectors(args))
    launch_dependent(context, rms_norm_vectors<4>, rows, kVectorThreads, 0, args);
  else
    launch_dependent(context, rms_norm_long, rows, row_threads(args.cols), 0, args);
}

void layer_norm(const Context& context, const LayerNormArgs& args) {
  if (args.rows == 0) return;
  if (args.cols <= kShort)
    launch_dependent(context, layer_norm_short, blocks_for(args.rows, kWarps), kWarps * 32, 0, args);
  else
    launch_dependent(context, layer_norm_long, static_cast<unsigned>(args.rows), row_threads(args.cols), 0, args);
}

}  // namespace nibble::kernels::cuda
