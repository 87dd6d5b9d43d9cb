// route_experts_gradient, and dot_rows: what a row brings its weight.
#include "kernels/cuda/expert_gradients.h"

#include "kernels/cuda/device/element.cuh"

namespace nibble::kernels::cuda {
namespace {

/// A warp a token. Weights are shares of all experts, or of the chosen ones if normalized; a share's slope is the
/// share times its own gradient less the mean of all.
__global__ void route_experts_gradient_kernel(RouteExpertsGradientArgs args) {
  const int64_t token = blockIdx.x;
  const int lane = threadIdx.x, experts = static_cast<int>(args.experts), top_k = static_cast<int>(args.top_k);
  const float* logits = args.logits + token * experts;
  const int32_t* ids = args.ids + token * top_k;
  const float* dweights = args.dweights + token * top_k;
  float* dlogits = args.dlogits + token * experts;
  const float highest = logits[ids[0]];
  float chosen = 0, all = 0, mean = 0;
  for (int k = lane; k < top_k; k += 32) {
    const float share = expf(logits[ids[k]] - highest);
    chosen += share;
    mean = fmaf(dweights[k], share, mean);
  }
  if (!args.normalize)
    for (int e = lane; e < experts; e += 32) all += expf(logits[e] - highest);
  const float total = warp_sum(args.normalize ? chosen : all);
  mean = warp_sum(mean) / total;
  for (int e = lane; e < experts; e += 32)
    dlogits[e] = args.normalize ? 0.0f : expf(logits[e] - highest) / total * -mean;
  __syncwarp();
  for (int k = lane; k < top_k; k += 32)
    dlogits[ids[k]] = expf(logits[ids[k]] - highest) / total * (dweights[k] - mean);
}

constexpr int kWarps = 4;

/// A warp a row.
__global__ void __launch_bounds__(kWarps * 32) dot_rows_kernel(DotRowsArgs args) {
  const int64_t i = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (i >= args.count) return;
  const float *x = args.x + i * args.cols, *y = args.y + args.rows[i] * args.cols;
  float sum = 0;
  for (int64_t c = threadIdx.x % 32; c < args.cols; c += 32) sum = fmaf(x[c], y[c], sum);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) args.dots[i] = sum;
}

}  // namespace

void route_experts_gradient(const Context& context, const RouteExpertsGradientArgs& args) {
  if (args.tokens == 0 || args.top_k == 0) return;
  route_experts_gradient_kernel<<<static_cast<unsigned>(args.tokens), 32, 0, stream_of(context.stream)>>>(args);
}

void dot_rows(const Context& context, const DotRowsArgs& args) {
  if (args.count == 0) return;
  dot_rows_kernel<<<blocks_for(args.count, kWarps), kWarps * 32, 0, stream_of(context.stream)>>>(args);
}

}  // namespace nibble::kernels::cuda
