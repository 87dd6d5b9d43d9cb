// Attention over whole sequences, with gradients: rope included, no cache.
#pragma once

#include <span>

#include "autograd/tape.h"
#include "ops/backend.h"

namespace nibble::ops {

/// Rotates the first rotary_dim of every head of x (tokens, heads, head_dim), whose value it takes: no step before may
/// need it on the way back. The angles (tokens, rotary_dim / 2) must outlive the backward pass. Contract:
/// kernels::RopeArgs.
struct RopeAngles {
  const float* cos;
  const float* sin;
  const float* minus_sin;
  int64_t rotary_dim;
  bool is_interleaved;
};
autograd::Var rope(autograd::Tape& tape, const Backend& backend, const autograd::Var& x, int64_t heads,
                   int64_t head_dim, const RopeAngles& angles);

struct AttentionShape {
  int64_t heads, kv_heads, head_dim;
  float scale;
  int64_t window = 0;
  const float* alibi_slopes = nullptr;
  float softcap = 0;
  DType alibi_dtype = DType::f32;
  float alibi_scale = 1;
  bool is_causal = true;
  const float* relative_bias = nullptr;  // contract: kernels::AttentionArgs
  int64_t relative_span = 0;
  autograd::Var relative_variable = nullptr;  // whose value relative_bias is, if it is trained; not on a GPU
};
/// q (tokens, heads, head_dim), k and v (tokens, kv_heads, head_dim) of sequences of `lengths`, one after the other,
/// which do not see each other. Gives (tokens, heads, head_dim). Contract: kernels::AttentionArgs. `key_lengths`: those
/// of k's and v's sequences, if they are other ones (not causal).
autograd::Var attention(autograd::Tape& tape, const Backend& backend, const autograd::Var& q, const autograd::Var& k,
                        const autograd::Var& v, std::span<const int64_t> lengths, const AttentionShape& shape,
                        std::span<const int64_t> key_lengths = {});

/// A projection to q, k and v in one, taken apart. Contract: kernels::SplitHeadsArgs.
struct SplitHeads {
  autograd::Var q, k, v;
};
SplitHeads split_heads(autograd::Tape& tape, const Backend& backend, const autograd::Var& x, int64_t groups,
                       int64_t q_per_group, int64_t kv_per_group, int64_t head_dim);

}  // namespace nibble::ops
