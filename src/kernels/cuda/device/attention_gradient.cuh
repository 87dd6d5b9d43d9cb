// What the kernels of the attention gradient share: sequences by value, and the statistics of each query.
#pragma once

#include "kernels/cuda/device/element.cuh"
#include "kernels/kernels.h"

namespace nibble::kernels::cuda {

/// Sequences of one launch: a kernel's arguments have 4 KB.
inline constexpr int kMaxGradientSequences = 32;

/// A call's arguments as kernels take them. A query's statistics: the binary logarithm of the sum of 2^(log2(e) score),
/// which each sequence has, and delta, out . dout, as (heads, total tokens).
struct GradientCall {
  AttentionGradientSequence at[kMaxGradientSequences];
  int64_t first[kMaxGradientSequences];  // a sequence's first token among all
  int count = 0;
  int64_t total = 0;    // tokens
  int64_t longest = 0;  // of a sequence
  int64_t most_keys = 0;
  int64_t heads, kv_heads, head_dim;
  float scale;
  int64_t window;  // huge: none
  const float* alibi_slopes;
  float softcap, alibi_scale;
  DType alibi_dtype;
  bool is_causal;  // only the general kernels take the other, and relative biases
  const float* relative_bias;
  int64_t relative_span;
  int64_t lse_stride;  // of the sequences' lse2, to the next head
  bool has_lse2;       // else they are room for it
  float* delta;

  __device__ __forceinline__ float& lse2_at(int64_t sequence, int64_t head, int64_t token) const {
    return const_cast<float*>(at[sequence].lse2)[head * lse_stride + token];
  }
};

inline constexpr float kLog2E = 1.4426950408889634f;

/// A score in units of log 2, and its slope in the product of query and key.
struct Score {
  float log2, slope;
};

/// kSpecial: with a soft cap or ALiBi, whose slope is `slope`.
template <bool kSpecial>
__device__ __forceinline__ Score score_of(const GradientCall& call, float product, float slope, int64_t key) {
  if constexpr (!kSpecial) return {product * (call.scale * kLog2E), call.scale};
  float score = product * call.scale, steepness = call.scale;
  if (call.softcap > 0) {
    const float turned = tanhf(score / call.softcap);
    score = call.softcap * turned;
    steepness *= 1.0f - turned * turned;
  }
  float bias = slope * static_cast<float>(key);
  if (call.alibi_dtype == DType::bf16)
    bias =
        __bfloat162float(__float2bfloat16_rn(slope * __bfloat162float(__float2bfloat16_rn(static_cast<float>(key)))));
  return {fmaf(call.alibi_scale, bias, score) * kLog2E, steepness};
}

__device__ __forceinline__ float slope_of(const GradientCall& call, int64_t head) {
  return call.alibi_slopes ? call.alibi_slopes[head] : 0.0f;
}

inline bool is_special(const GradientCall& call) { return call.softcap > 0 || call.alibi_slopes; }

/// The three gradients for any type and head size up to kGeneralDim; statistics by the first.
inline constexpr int64_t kGeneralDim = 512;
void attention_gradient_general(const Context& context, const GradientCall& call, DType dtype);
/// On tensor cores: bf16, sizes of heads that are multiples of 8 up to 128, 16-byte aligned arrays.
void attention_gradient_tiles(const Context& context, const GradientCall& call);
/// lse2 alone, of what attention_gradient_tiles takes.
void attention_statistics_tiles(const Context& context, const GradientCall& call);

/// On compute capability 9.0, of what attention_gradient_tiles takes and suits: `statistics` is room for
/// wide_statistics_bytes(). False if the driver can't, with nothing done.
bool suits_wide_gradient(const Context& context, const GradientCall& call);
int64_t wide_statistics_bytes(const GradientCall& call);
bool attention_gradient_wide(const Context& context, const GradientCall& call, void* statistics);

}  // namespace nibble::kernels::cuda
