// What the attention kernels share: their sequences by value, and what happens to a score before softmax.
#pragma once

#include "kernels/cuda/device/pack.cuh"
#include "kernels/kernels.h"

namespace nibble::kernels::cuda {

/// Sequences of one launch: a kernel's arguments have 4 KB.
inline constexpr int kMaxSequences = 32;

struct Sequences {
  AttentionSequence at[kMaxSequences];
  int count = 0;
};

/// Calls body(T{}) with the element type of a cache.
template <typename Body>
void with_cache_type(DType dtype, const Body& body) {
  if (dtype == DType::i8)
    body(int8_t{});
  else
    with_float_type(dtype, body);
}

/// What a stored key or value is multiplied with: 1, but for an i8 cache.
template <typename T>
__device__ __forceinline__ float scale_of(const float* scales, int64_t row) {
  if constexpr (sizeof(T) == 1)
    return __ldcg(scales + row);  // the newest may come from the kernel before
  else
    return 1.0f;
}

__device__ __forceinline__ float query_at(const AttentionArgs& args, const AttentionSequence& sequence, int64_t i) {
  return args.q_dtype == DType::bf16 ? to_float(static_cast<const __nv_bfloat16*>(sequence.q)[i])
                                     : static_cast<const float*>(sequence.q)[i];
}
__device__ __forceinline__ void put_result(const AttentionArgs& args, const AttentionSequence& sequence, int64_t i,
                                           float value) {
  if (args.q_dtype == DType::bf16)
    static_cast<__nv_bfloat16*>(sequence.out)[i] = __float2bfloat16_rn(value);
  else
    static_cast<float*>(sequence.out)[i] = value;
}

__device__ __forceinline__ int64_t past_of(const AttentionSequence& sequence) {
  return sequence.past_at ? *sequence.past_at : sequence.past;
}

/// The keys [begin, end) that a query at `position` sees.
struct KeyRange {
  int64_t begin, end;
};
__device__ __forceinline__ KeyRange keys_of(const AttentionArgs& args, const AttentionSequence& sequence,
                                            int64_t position) {
  const int64_t end = args.is_causal ? position + 1 : sequence.keys;
  const int64_t begin = args.window > 0 && end > args.window ? end - args.window : 0;
  return {begin, end};
}

__device__ __forceinline__ float alibi_of(const AttentionArgs& args, int64_t head, int64_t key) {
  const float slope = args.alibi_slopes[head], position = static_cast<float>(key);
  if (args.alibi_dtype != DType::bf16) return slope * position;
  return __bfloat162float(__float2bfloat16_rn(slope * __bfloat162float(__float2bfloat16_rn(position))));
}

__device__ __forceinline__ float finish_score(const AttentionArgs& args, float product, int64_t head, int64_t position,
                                              int64_t key) {
  float score = product * args.scale;
  if (args.softcap > 0) score = args.softcap * tanhf(score / args.softcap);
  if (args.alibi_slopes) score = fmaf(args.alibi_scale, alibi_of(args, head, key), score);
  if (args.relative_bias)
    score += args.relative_bias[head * (2 * args.relative_span - 1) + key - position + args.relative_span - 1];
  return score;
}

/// Of a family of kernels each takes what it can; attention.cu picks.
void attention_general(const Context& context, const AttentionArgs& args, const Sequences& sequences);
void attention_decode(const Context& context, const AttentionArgs& args, const Sequences& sequences);
void attention_prefill(const Context& context, const AttentionArgs& args, const Sequences& sequences);
/// Takes what attention_prefill takes, if it suits.
void attention_wide(const Context& context, const AttentionArgs& args, const Sequences& sequences);
bool suits_wide(const Context& context, const AttentionArgs& args, const AttentionSequence& sequence);

}  // namespace nibble::kernels::cuda
