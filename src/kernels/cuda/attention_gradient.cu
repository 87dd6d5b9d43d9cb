// attention_gradient: picks the kernels; and those for any type and shape, a warp a query or a key.
#include "kernels/cuda/device/attention_gradient.cuh"
#include "kernels/cuda/device/vector.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kSlots = kGeneralDim / 32;  // elements of a head that a lane holds

template <typename T>
__device__ __forceinline__ void load_head(float (&to)[kSlots], const float* rows, int64_t row, int64_t dim) {
  const T* from = reinterpret_cast<const T*>(rows) + row * dim;
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    const int64_t d = threadIdx.x % 32 + 32 * i;
    to[i] = d < dim ? to_float(from[d]) : 0.0f;
  }
}

template <typename T>
__device__ __forceinline__ void store_head(float* rows, int64_t row, int64_t dim, const float (&from)[kSlots]) {
  T* to = reinterpret_cast<T*>(rows) + row * dim;
#pragma unroll
  for (int i = 0; i < kSlots; ++i) {
    const int64_t d = threadIdx.x % 32 + 32 * i;
    if (d < dim) to[d] = from_float<T>(from[i]);
  }
}

__device__ __forceinline__ float dot(const float (&a)[kSlots], const float (&b)[kSlots]) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kSlots; ++i) sum = fmaf(a[i], b[i], sum);
  return warp_sum(sum);
}

/// A warp a query and head: its statistics and dq.
template <typename T>
__global__ void __launch_bounds__(kWarps * 32) query_kernel(const __grid_constant__ GradientCall call) {
  const AttentionGradientSequence& s = call.at[blockIdx.z];
  const int64_t token = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32, head = blockIdx.y, dim = call.head_dim;
  if (token >= s.tokens) return;
  const int64_t kv_head = head / (call.heads / call.kv_heads), row = token * call.heads + head;
  const int64_t begin = max(int64_t{0}, token + 1 - call.window);
  float q[kSlots], dout[kSlots], other[kSlots], dq[kSlots] = {};
  load_head<T>(q, s.q, row, dim);
  load_head<T>(dout, s.dout, row, dim);
  load_head<T>(other, s.out, row, dim);
  const float delta = dot(other, dout), slope = slope_of(call, head);
  float maximum = -INFINITY, total = 0;
  for (int64_t key = begin; key <= token; ++key) {
    load_head<T>(other, s.k, key * call.kv_heads + kv_head, dim);
    const float score = score_of<true>(call, dot(q, other), slope, key).log2, highest = fmaxf(maximum, score);
    total = total * exp2f(maximum - highest) + exp2f(score - highest);
    maximum = highest;
  }
  const float lse2 = maximum + log2f(total);
  for (int64_t key = begin; key <= token; ++key) {
    load_head<T>(other, s.v, key * call.kv_heads + kv_head, dim);
    const float dp = dot(dout, other);
    load_head<T>(other, s.k, key * call.kv_heads + kv_head, dim);
    const Score score = score_of<true>(call, dot(q, other), slope, key);
    const float ds = exp2f(score.log2 - lse2) * (dp - delta) * score.slope;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) dq[i] = fmaf(ds, other[i], dq[i]);
  }
  store_head<T>(s.dq, row, dim, dq);
  if (threadIdx.x % 32 != 0) return;
  call.lse2[head * call.total + call.first[blockIdx.z] + token] = lse2;
  call.delta[head * call.total + call.first[blockIdx.z] + token] = delta;
}

/// A warp a key and its head: dk and dv.
template <typename T>
__global__ void __launch_bounds__(kWarps * 32) key_kernel(const __grid_constant__ GradientCall call) {
  const AttentionGradientSequence& s = call.at[blockIdx.z];
  const int64_t key = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32, kv_head = blockIdx.y, dim = call.head_dim;
  if (key >= s.tokens) return;
  const int64_t group = call.heads / call.kv_heads, row = key * call.kv_heads + kv_head;
  const int64_t end = call.window < s.tokens - key ? key + call.window : s.tokens;
  float k[kSlots], v[kSlots], q[kSlots], dout[kSlots], dk[kSlots] = {}, dv[kSlots] = {};
  load_head<T>(k, s.k, row, dim);
  load_head<T>(v, s.v, row, dim);
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    const float slope = slope_of(call, head);
    for (int64_t token = key; token < end; ++token) {
      load_head<T>(q, s.q, token * call.heads + head, dim);
      load_head<T>(dout, s.dout, token * call.heads + head, dim);
      const int64_t at = head * call.total + call.first[blockIdx.z] + token;
      const Score score = score_of<true>(call, dot(q, k), slope, key);
      const float p = exp2f(score.log2 - call.lse2[at]), ds = p * (dot(dout, v) - call.delta[at]) * score.slope;
#pragma unroll
      for (int i = 0; i < kSlots; ++i) {
        dk[i] = fmaf(ds, q[i], dk[i]);
        dv[i] = fmaf(p, dout[i], dv[i]);
      }
    }
  }
  store_head<T>(s.dk, row, dim, dk);
  store_head<T>(s.dv, row, dim, dv);
}

bool has_tiles(const Context& context, const AttentionGradientArgs& args) {
  if (args.dtype != DType::bf16 || context.capability < 80 || args.head_dim % 8 != 0 || args.head_dim > 128)
    return false;
  for (int64_t i = 0; i < args.sequence_count; ++i) {
    const AttentionGradientSequence& s = args.sequences[i];
    for (const float* pointer : {s.q, s.k, s.v, s.out, s.dout, static_cast<const float*>(s.dq),
                                 static_cast<const float*>(s.dk), static_cast<const float*>(s.dv)})
      if (!is_aligned(pointer, 16)) return false;
  }
  return true;
}

}  // namespace

void attention_gradient_general(const Context& context, const GradientCall& call, DType dtype) {
  const auto count = static_cast<unsigned>(call.count), tiles = blocks_for(call.longest, kWarps);
  with_float_type(dtype, [&](auto element) {
    using T = decltype(element);
    const cudaStream_t stream = stream_of(context.stream);
    query_kernel<T><<<dim3(tiles, static_cast<unsigned>(call.heads), count), kWarps * 32, 0, stream>>>(call);
    key_kernel<T><<<dim3(tiles, static_cast<unsigned>(call.kv_heads), count), kWarps * 32, 0, stream>>>(call);
  });
}

void attention_gradient(const Context& context, const AttentionGradientArgs& args) {
  const bool is_tiled = has_tiles(context, args);
  for (int64_t begin = 0; begin < args.sequence_count; begin += kMaxGradientSequences) {
    GradientCall call;
    call.heads = args.heads;
    call.kv_heads = args.kv_heads;
    call.head_dim = args.head_dim;
    call.scale = args.scale;
    call.window = args.window > 0 ? args.window : int64_t{1} << 40;
    call.alibi_slopes = args.alibi_slopes;
    call.softcap = args.softcap;
    call.alibi_scale = args.alibi_scale;
    call.alibi_dtype = args.alibi_dtype;
    for (int64_t i = begin; i < args.sequence_count && call.count < kMaxGradientSequences; ++i) {
      if (args.sequences[i].tokens == 0) continue;
      call.at[call.count] = args.sequences[i];
      call.first[call.count++] = call.total;
      call.total += args.sequences[i].tokens;
      call.longest = args.sequences[i].tokens > call.longest ? args.sequences[i].tokens : call.longest;
    }
    if (call.count == 0) continue;
    call.lse2 = static_cast<float*>(context.scratch->reserve(2 * args.heads * call.total * 4));
    call.delta = call.lse2 + args.heads * call.total;
    is_tiled ? attention_gradient_tiles(context, call) : attention_gradient_general(context, call, args.dtype);
  }
}

}  // namespace nibble::kernels::cuda
