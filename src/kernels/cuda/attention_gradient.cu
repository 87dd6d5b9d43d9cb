// attention_gradient: picks the kernels; and those for any type and shape, a warp a query or a key.
#include <algorithm>

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

__device__ __forceinline__ int64_t keys_of(const AttentionGradientSequence& s) {
  return s.keys > 0 ? s.keys : s.tokens;
}

/// score_of, with the relative bias.
__device__ __forceinline__ Score biased_score_of(const GradientCall& call, float product, float slope, int64_t head,
                                                 int64_t query, int64_t key) {
  Score score = score_of<true>(call, product, slope, key);
  if (call.relative_bias)
    score.log2 +=
        call.relative_bias[head * (2 * call.relative_span - 1) + key - query + call.relative_span - 1] * kLog2E;
  return score;
}

/// A warp a query and head: its statistics and dq.
template <typename T>
__global__ void __launch_bounds__(kWarps * 32) query_kernel(const __grid_constant__ GradientCall call) {
  const AttentionGradientSequence& s = call.at[blockIdx.z];
  const int64_t token = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32, head = blockIdx.y, dim = call.head_dim;
  if (token >= s.tokens) return;
  const int64_t kv_head = head / (call.heads / call.kv_heads), row = token * call.heads + head;
  const int64_t begin = max(int64_t{0}, token + 1 - call.window), end = call.is_causal ? token + 1 : keys_of(s);
  float q[kSlots], dout[kSlots], other[kSlots], dq[kSlots] = {};
  load_head<T>(q, s.q, row, dim);
  load_head<T>(dout, s.dout, row, dim);
  load_head<T>(other, s.out, row, dim);
  const float delta = dot(other, dout), slope = slope_of(call, head);
  float maximum = -INFINITY, total = 0;
  for (int64_t key = call.has_lse2 ? end : begin; key < end; ++key) {
    load_head<T>(other, s.k, key * call.kv_heads + kv_head, dim);
    const float score = biased_score_of(call, dot(q, other), slope, head, token, key).log2;
    const float highest = fmaxf(maximum, score);
    total = total * exp2f(maximum - highest) + exp2f(score - highest);
    maximum = highest;
  }
  const float lse2 = call.has_lse2 ? call.lse2_at(blockIdx.z, head, token) : maximum + log2f(total);
  for (int64_t key = begin; key < end; ++key) {
    load_head<T>(other, s.v, key * call.kv_heads + kv_head, dim);
    const float dp = dot(dout, other);
    load_head<T>(other, s.k, key * call.kv_heads + kv_head, dim);
    const Score score = biased_score_of(call, dot(q, other), slope, head, token, key);
    const float ds = exp2f(score.log2 - lse2) * (dp - delta) * score.slope;
#pragma unroll
    for (int i = 0; i < kSlots; ++i) dq[i] = fmaf(ds, other[i], dq[i]);
  }
  store_head<T>(s.dq, row, dim, dq);
  if (threadIdx.x % 32 != 0) return;
  if (!call.has_lse2) call.lse2_at(blockIdx.z, head, token) = lse2;
  call.delta[head * call.total + call.first[blockIdx.z] + token] = delta;
}

/// A warp a key and its head: dk and dv.
template <typename T>
__global__ void __launch_bounds__(kWarps * 32) key_kernel(const __grid_constant__ GradientCall call) {
  const AttentionGradientSequence& s = call.at[blockIdx.z];
  const int64_t key = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32, kv_head = blockIdx.y, dim = call.head_dim;
  if (key >= keys_of(s)) return;
  const int64_t group = call.heads / call.kv_heads, row = key * call.kv_heads + kv_head;
  const int64_t end = call.window < s.tokens - key ? key + call.window : s.tokens;
  float k[kSlots], v[kSlots], q[kSlots], dout[kSlots], dk[kSlots] = {}, dv[kSlots] = {};
  load_head<T>(k, s.k, row, dim);
  load_head<T>(v, s.v, row, dim);
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    const float slope = slope_of(call, head);
    for (int64_t token = call.is_causal ? key : 0; token < end; ++token) {
      load_head<T>(q, s.q, token * call.heads + head, dim);
      load_head<T>(dout, s.dout, token * call.heads + head, dim);
      const int64_t at = head * call.total + call.first[blockIdx.z] + token;
      const Score score = biased_score_of(call, dot(q, k), slope, head, token, key);
      const float p = exp2f(score.log2 - call.lse2_at(blockIdx.z, head, token)),
                  ds = p * (dot(dout, v) - call.delta[at]) * score.slope;
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

/// A warp a head and distance from query to key: what the relative bias there gains, from all pairs that far apart.
template <typename T>
__global__ void __launch_bounds__(kWarps * 32) relative_kernel(const __grid_constant__ GradientCall call, float* sums) {
  const int64_t width = 2 * call.relative_span - 1, index = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (index >= call.heads * width) return;
  const int64_t head = index / width, distance = index % width - (call.relative_span - 1), dim = call.head_dim;
  const int64_t kv_head = head / (call.heads / call.kv_heads);
  if ((call.is_causal && distance > 0) || -distance >= call.window) return;
  const float slope = slope_of(call, head);
  float a[kSlots], b[kSlots], sum = 0;
  for (int i = 0; i < call.count; ++i) {
    const AttentionGradientSequence& s = call.at[i];
    const int64_t end = min(s.tokens, keys_of(s) - distance);
    for (int64_t token = max(int64_t{0}, -distance); token < end; ++token) {
      const int64_t row = token * call.heads + head, key = token + distance, key_row = key * call.kv_heads + kv_head;
      load_head<T>(a, s.q, row, dim);
      load_head<T>(b, s.k, key_row, dim);
      const float score = biased_score_of(call, dot(a, b), slope, head, token, key).log2;
      load_head<T>(a, s.dout, row, dim);
      load_head<T>(b, s.v, key_row, dim);
      const float delta = call.delta[head * call.total + call.first[i] + token];
      sum = fmaf(exp2f(score - call.lse2_at(i, head, token)), dot(a, b) - delta, sum);
    }
  }
  if (threadIdx.x % 32 == 0) sums[index] += sum;
}

bool has_tiles(const Context& context, const AttentionGradientArgs& args) {
  if (!args.is_causal || args.relative_bias || args.dtype != DType::bf16 || context.capability < 80 ||
      args.head_dim % 8 != 0 || args.head_dim > 128)
    return false;
  for (int64_t i = 0; i < args.sequence_count; ++i) {
    const AttentionGradientSequence& s = args.sequences[i];
    for (const float* pointer : {s.q, s.k, s.v, s.out, s.dout, static_cast<const float*>(s.dq),
                                 static_cast<const float*>(s.dk), static_cast<const float*>(s.dv)})
      if (!is_aligned(pointer, 16)) return false;
  }
  return true;
}

/// Where the caller has no lse2, room for it.
void place_statistics(GradientCall& call, float* lse2, float* delta) {
  call.delta = delta;
  if (call.has_lse2) return;
  call.lse_stride = call.total;
  for (int i = 0; i < call.count; ++i) call.at[i].lse2 = lse2 + call.first[i];
}

void run_general(const Context& context, GradientCall& call, DType dtype, float* drelative_bias) {
  const int64_t count = call.heads * call.total;
  auto* memory = static_cast<float*>(context.scratch->reserve(2 * count * 4));
  place_statistics(call, memory + count, memory);
  attention_gradient_general(context, call, dtype);
  if (!drelative_bias) return;
  const unsigned blocks = blocks_for(call.heads * (2 * call.relative_span - 1), kWarps);
  with_float_type(dtype, [&](auto element) {
    relative_kernel<decltype(element)><<<blocks, kWarps * 32, 0, stream_of(context.stream)>>>(call, drelative_bias);
  });
}

void run_tiles(const Context& context, GradientCall& call) {
  const int64_t count = call.heads * call.total;
  const bool is_wide = suits_wide_gradient(context, call);
  const int64_t pairs = is_wide ? (wide_statistics_bytes(call) + 15) / 16 * 16 : 0;
  auto* memory = static_cast<char*>(context.scratch->reserve(pairs + 2 * count * 4));
  auto* delta = reinterpret_cast<float*>(memory + pairs);
  place_statistics(call, delta + count, delta);
  if (!call.has_lse2) attention_statistics_tiles(context, call);
  if (!is_wide || !attention_gradient_wide(context, call, memory)) attention_gradient_tiles(context, call);
}

}  // namespace

void attention_gradient_general(const Context& context, const GradientCall& call, DType dtype) {
  const auto count = static_cast<unsigned>(call.count), tiles = blocks_for(call.longest, kWarps),
             key_tiles = blocks_for(call.most_keys, kWarps);
  with_float_type(dtype, [&](auto element) {
    using T = decltype(element);
    const cudaStream_t stream = stream_of(context.stream);
    query_kernel<T><<<dim3(tiles, static_cast<unsigned>(call.heads), count), kWarps * 32, 0, stream>>>(call);
    key_kernel<T><<<dim3(key_tiles, static_cast<unsigned>(call.kv_heads), count), kWarps * 32, 0, stream>>>(call);
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
    call.is_causal = args.is_causal;
    call.relative_bias = args.relative_bias;
    call.relative_span = args.relative_span;
    call.lse_stride = args.lse_stride;
    call.has_lse2 = args.sequences[begin].lse2 != nullptr;
    const int64_t end = std::min(args.sequence_count, begin + kMaxGradientSequences);
    for (int64_t i = begin; i < end; ++i) {
      if (args.sequences[i].tokens == 0) continue;
      call.at[call.count] = args.sequences[i];
      call.first[call.count++] = call.total;
      call.total += args.sequences[i].tokens;
      call.longest = std::max(call.longest, args.sequences[i].tokens);
      call.most_keys = std::max(call.most_keys, args.sequences[i].key_count());
    }
    if (call.count == 0) continue;
    is_tiled ? run_tiles(context, call) : run_general(context, call, args.dtype, args.drelative_bias);
  }
}

}  // namespace nibble::kernels::cuda
