// rope and split_heads: what happens to queries and keys between their projection and the attention.
#include "kernels/cuda/device/pack.cuh"
#include "kernels/cuda/device/vector.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

/// One thread a pair.
template <typename X>
__global__ void rope_kernel(RopeArgs args) {
  const int64_t half = args.rotary_dim / 2;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= args.tokens * args.heads * half) return;
  const int64_t i = index % half, head = index / half % args.heads, token = index / half / args.heads;
  X* x = static_cast<X*>(args.x) + token * args.stride + head * args.head_dim;
  X& first = args.interleaved ? x[2 * i] : x[i];
  X& second = args.interleaved ? x[2 * i + 1] : x[i + half];
  const float cos = args.cos[token * half + i], sin = args.sin[token * half + i];
  const float a = to_float(first), b = to_float(second);
  first = from_float<X>(fmaf(a, cos, -(b * sin)));
  second = from_float<X>(fmaf(b, cos, a * sin));
}

/// Eight pairs of halves a thread; a block row a token.
template <typename X>
__global__ void rope_vectors(RopeArgs args) {
  const int half = static_cast<int>(args.rotary_dim / 2), vectors = half / 8;
  const int at = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  if (at >= static_cast<int>(args.heads) * vectors) return;
  const int64_t token = blockIdx.x;
  const int i = at % vectors * 8;
  X* x = static_cast<X*>(args.x) + token * args.stride + at / vectors * args.head_dim + i;
  float a[8], b[8], first[8], second[8], cos[8], sin[8];
  Vector8<X>::load(x).unpack(a);
  Vector8<X>::load(x + half).unpack(b);
  Vector8<float>::load(args.cos + token * half + i).unpack(cos);
  Vector8<float>::load(args.sin + token * half + i).unpack(sin);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    first[j] = fmaf(a[j], cos[j], -(b[j] * sin[j]));
    second[j] = fmaf(b[j], cos[j], a[j] * sin[j]);
  }
  Vector8<X>::pack(first).store(x);
  Vector8<X>::pack(second).store(x + half);
}

bool has_vectors(const RopeArgs& args) {
  return !args.interleaved && args.rotary_dim % 16 == 0 && args.stride % 8 == 0 && args.head_dim % 8 == 0 &&
         is_aligned(args.x, 16) && is_aligned(args.cos, 16) && is_aligned(args.sin, 16) && args.tokens < 0x7fffffff;
}

template <typename X>
__global__ void split_heads_kernel(SplitHeadsArgs args, int64_t q_width, int64_t kv_width) {
  const int64_t width = q_width + 2 * kv_width;
  const int64_t group = blockIdx.x;  // over tokens and groups
  const X* x = static_cast<const X*>(args.x) + group * width;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
    if (i < q_width)
      static_cast<X*>(args.q)[group * q_width + i] = x[i];
    else if (i < q_width + kv_width)
      static_cast<X*>(args.k)[group * kv_width + i - q_width] = x[i];
    else
      static_cast<X*>(args.v)[group * kv_width + i - q_width - kv_width] = x[i];
  }
}

}  // namespace

void rope(const Context& context, const RopeArgs& args) {
  const int64_t pairs = args.tokens * args.heads * (args.rotary_dim / 2);
  if (pairs == 0) return;
  with_activation_type(args.x_dtype, [&](auto x) {
    if (has_vectors(args)) {
      const dim3 grid(static_cast<unsigned>(args.tokens), blocks_for(args.heads * args.rotary_dim / 16, 128));
      rope_vectors<decltype(x)><<<grid, 128, 0, stream_of(context.stream)>>>(args);
      return;
    }
    rope_kernel<decltype(x)><<<blocks_for(pairs, 256), 256, 0, stream_of(context.stream)>>>(args);
  });
}

void split_heads(const Context& context, const SplitHeadsArgs& args) {
  if (args.tokens == 0) return;
  with_activation_type(args.dtype, [&](auto x) {
    split_heads_kernel<decltype(x)>
        <<<static_cast<unsigned>(args.tokens * args.groups), 256, 0, stream_of(context.stream)>>>(
            args, args.q_per_group * args.head_dim, args.kv_per_group * args.head_dim);
  });
}

}  // namespace nibble::kernels::cuda
