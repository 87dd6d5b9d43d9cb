// rms_norm and layer_norm: a block for each row, or a warp where rows are short (the norms of heads).
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
  const auto cols = static_cast<float>(args.cols);
  float total = 0;
  for (int64_t c = team.index(); c < args.cols; c += team.size()) total += x[c];
  const float mean = team.sum(total) / cols;
  float squares = 0;
  for (int64_t c = team.index(); c < args.cols; c += team.size()) squares = fmaf(x[c] - mean, x[c] - mean, squares);
  const float scale = 1.0f / sqrtf(team.sum(squares) / cols + args.eps);
  for (int64_t c = team.index(); c < args.cols; c += team.size()) {
    const float value = (x[c] - mean) * scale * args.weight[c];
    out[c] = args.bias ? value + args.bias[c] : value;
  }
}

__global__ void rms_norm_short(RmsNormArgs args) { rms_row(WarpTeam{}, args); }
__global__ void rms_norm_long(RmsNormArgs args) {
  __shared__ float shared[32];
  rms_row(BlockTeam{shared}, args);
}
__global__ void layer_norm_short(LayerNormArgs args) { layer_row(WarpTeam{}, args); }
__global__ void layer_norm_long(LayerNormArgs args) {
  __shared__ float shared[32];
  layer_row(BlockTeam{shared}, args);
}

/// Threads of a long row; they do not depend on the number of rows, so that a row's bits do not.
unsigned row_threads(int64_t cols) { return cols >= 2048 ? 1024 : 256; }

}  // namespace

void rms_norm(const Context& context, const RmsNormArgs& args) {
  if (args.rows == 0) return;
  if (args.cols <= kShort)
    rms_norm_short<<<blocks_for(args.rows, kWarps), kWarps * 32, 0, stream_of(context.stream)>>>(args);
  else
    rms_norm_long<<<static_cast<unsigned>(args.rows), row_threads(args.cols), 0, stream_of(context.stream)>>>(args);
}

void layer_norm(const Context& context, const LayerNormArgs& args) {
  if (args.rows == 0) return;
  if (args.cols <= kShort)
    layer_norm_short<<<blocks_for(args.rows, kWarps), kWarps * 32, 0, stream_of(context.stream)>>>(args);
  else
    layer_norm_long<<<static_cast<unsigned>(args.rows), row_threads(args.cols), 0, stream_of(context.stream)>>>(args);
}

}  // namespace nibble::kernels::cuda
