// Argument structs of the entries that training needs: gradients of the forward entries, and the loss.
//
// The contracts of kernels.h hold. A gradient is added to when `accumulate` says so, else written.
#pragma once

#include <cstdint>

#include "nibble/types.h"

namespace nibble::kernels {

struct Absmax;
enum class Activation : uint8_t;

/// A weight (rows, cols) in one of the forms that a linear layer may have.
struct WeightView {
  enum class Kind : uint8_t { dense, four_bit, int8 } kind;
  const void* data;  // dense: elements of `dtype`; 4-bit: packed codes; int8: rows of codes
  DType dtype = DType::f32;
  const Absmax* absmax = nullptr;     // 4-bit
  int64_t block = 0;                  // 4-bit
  const float* code_book = nullptr;   // 4-bit: (16)
  const float* row_absmax = nullptr;  // int8: (rows)
};

/// dx (m, cols) = dy (m, rows) . w (rows, cols): the gradient of y = x w^T in x, in fp32. The weight is decoded a panel
/// at a time and never written out whole.
struct InputGradientArgs {
  const float* dy;  // row i at dy + i * dy_stride
  int64_t dy_stride;
  int64_t m, rows, cols;
  WeightView w;
  float* dx;  // (m, cols)
  bool accumulate;
};

/// dw (rows, cols) = dy (m, rows)^T . x (m, cols): the gradient of y = x w^T in w.
struct WeightGradientArgs {
  const float* dy;  // (m, rows)
  const float* x;   // (m, cols)
  int64_t m, rows, cols;
  float* dw;
  bool accumulate;
};

/// Gradients of RmsNormArgs: dx (rows, cols), and dweight (cols) unless it is null.
struct RmsNormGradientArgs {
  const float* x;
  const float* weight;
  const float* dy;
  int64_t rows, cols;
  float eps;
  float weight_offset;
  float* dx;
  float* dweight;  // always added to
  bool accumulate;
};

/// Gradients of LayerNormArgs: dx (rows, cols), and dweight and dbias (cols) unless they are null.
struct LayerNormGradientArgs {
  const float* x;
  const float* weight;
  const float* dy;
  int64_t rows, cols;
  float eps;
  float* dx;
  float* dweight;  // always added to
  float* dbias;    // always added to
  bool accumulate;
};

/// Gradients of out = act(gate) * up, or of out = act(gate) where up is null. dgate and dup may be gate and up.
struct ActivateGradientArgs {
  const float* gate;  // row r at gate + r * stride
  const float* up;
  int64_t stride;
  const float* dout;  // (rows, cols)
  int64_t rows, cols;
  Activation activation;
  float* dgate;  // row r at dgate + r * stride
  float* dup;    // null if up is
};

/// One sequence's share of an attention gradient: no past, its own keys alone.
struct AttentionGradientSequence {
  const float* q;  // (tokens, heads, head_dim)
  const float* k;  // (tokens, kv_heads, head_dim)
  const float* v;
  const float* out;   // (tokens, heads, head_dim), what attention gave
  const float* dout;  // its gradient
  int64_t tokens;
  float* dq;  // written
  float* dk;
  float* dv;
};

/// Gradients of causal attention without softcap. Scores are computed anew, a block of queries at a time.
struct AttentionGradientArgs {
  const AttentionGradientSequence* sequences;
  int64_t sequence_count;
  int64_t heads, kv_heads, head_dim;
  float scale;
  int64_t window;             // > 0: only the last `window` keys
  const float* alibi_slopes;  // (heads), or null
};

/// Row i: loss[i] = log sum exp(logits[i]) - logits[i, target], and logits become `scale` times their gradient.
/// A target below zero is left out: its loss is 0 and its gradient zero.
struct CrossEntropyArgs {
  float* logits;  // (rows, vocab)
  const int32_t* targets;
  int64_t rows, vocab;
  float scale;
  float* loss;  // (rows)
};

/// out[i] = keeps(seed, first + i) ? x[i] / (1 - p) : 0. The same seed and position always give the same choice, so the
/// gradient is the same call on dout. out may be x.
struct DropoutArgs {
  const float* x;
  int64_t count;
  float p;  // in [0, 1)
  uint64_t seed;
  int64_t first;
  float* out;
};

/// y += scale * x.
struct AddScaledArgs {
  const float* x;
  int64_t count;
  float scale;
  float* y;
};

}  // namespace nibble::kernels
