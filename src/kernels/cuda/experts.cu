// route_experts and scatter_add_rows: which experts a token visits, and their results brought back.
#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

struct Best {
  float value;
  int index;
};

/// The larger logit; of equals, the lower index.
__device__ Best better(Best a, Best b) {
  return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

__device__ Best warp_best(Best best) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    best =
        better(best, {__shfl_xor_sync(kFullMask, best.value, offset), __shfl_xor_sync(kFullMask, best.index, offset)});
  return best;
}

/// A warp a token; each round takes the best logit that comes after the last one taken. What is no number comes first,
/// and makes the token's weights no numbers.
__global__ void route_experts_kernel(RouteExpertsArgs args) {
  const int64_t token = blockIdx.x;
  const int lane = threadIdx.x, experts = static_cast<int>(args.experts), top_k = static_cast<int>(args.top_k);
  const float* logits = args.logits + token * experts;
  int32_t* ids = args.ids + token * top_k;
  float* weights = args.weights + token * top_k;
  Best last{INFINITY, -1};
  float highest = 0, taken = 0;
  for (int k = 0; k < top_k; ++k) {
    Best best{-INFINITY, 0x7fffffff};
    for (int e = lane; e < experts; e += 32) {
      const float value = isnan(logits[e]) ? INFINITY : logits[e];
      const bool is_left = value < last.value || (value == last.value && e > last.index);
      if (is_left || k == 0) best = better(best, {value, e});
    }
    last = warp_best(best);
    if (k == 0) highest = last.value;
    const float weight = expf(last.value - highest);
    taken += weight;
    if (lane == 0) {
      ids[k] = last.index;
      weights[k] = weight;
    }
  }
  float total = taken;
  if (!args.normalize) {
    total = 0;
    for (int e = lane; e < experts; e += 32) total += expf(logits[e] - highest);
    total = warp_sum(total);
  }
  __syncwarp();
  for (int k = lane; k < top_k; k += 32) weights[k] /= total;
}

template <typename T>
__global__ void scatter_add_rows_kernel(ScatterAddRowsArgs args) {
  const int64_t i = blockIdx.x;
  const float weight = args.weights[i];
  const T* x = reinterpret_cast<const T*>(args.x) + i * args.cols;
  T* out = reinterpret_cast<T*>(args.out) + args.rows[i] * args.cols;
  for (int64_t c = threadIdx.x; c < args.cols; c += blockDim.x)
    out[c] = from_float<T>(to_float(out[c]) + weight * to_float(x[c]));
}

}  // namespace

void route_experts(const Context& context, const RouteExpertsArgs& args) {
  if (args.tokens == 0 || args.top_k == 0) return;
  route_experts_kernel<<<static_cast<unsigned>(args.tokens), 32, 0, stream_of(context.stream)>>>(args);
}

void scatter_add_rows(const Context& context, const ScatterAddRowsArgs& args) {
  if (args.count == 0) return;
  with_float_type(args.dtype, [&](auto element) {
    scatter_add_rows_kernel<decltype(element)>
        <<<static_cast<unsigned>(args.count), 256, 0, stream_of(context.stream)>>>(args);
  });
}

}  // namespace nibble::kernels::cuda
