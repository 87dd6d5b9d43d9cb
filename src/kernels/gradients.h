// Argument structs of the entries that training needs: gradients of the forward entries, and the loss.
//
// The contracts of kernels.h hold. A gradient is added to when `accumulate` says so, else written.
// `dtype` is the element type of activations and their gradients: f32; on a GPU also bf16, and what is declared as
// float then points to bf16. Weights' gradients and everything summed over rows stay fp32.
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

/// dx (m, cols) = dy (m, rows) . w (rows, cols): the gradient of y = x w^T in x. The weight is decoded a panel at a
/// time and never written out whole. f32: products in fp32; bf16: the decoded weight is rounded to bf16.
struct InputGradientArgs {
  const float* dy;  // row i at dy + i * dy_stride
  int64_t dy_stride;
  int64_t m, rows, cols;
  WeightView w;
  float* dx;  // (m, cols)
  bool accumulate;
  DType dtype = DType::f32;
  /// bf16: dy and the decoded weight are rounded to it before they are multiplied, and summed in fp32. A GPU may, where
  /// its tensor cores take the shape.
  DType compute = DType::f32;
};

/// dw (rows, cols) = dy (m, rows)^T . x (m, cols): the gradient of y = x w^T in w.
struct WeightGradientArgs {
  const float* dy;  // (m, rows)
  const float* x;   // (m, cols)
  int64_t m, rows, cols;
  float* dw;
  bool accumulate;
  DType dtype = DType::f32;
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
  DType dtype = DType::f32;
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
  DType dtype = DType::f32;
  int64_t sets = 1;  // weight, dweight and dbias are (sets, cols), as LayerNormArgs'
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
  DType dtype = DType::f32;
};

/// One sequence's share of an attention gradient: no past.
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
  int64_t keys = 0;  // if not causal: rows of k and v, all of which every query sees
  /// CUDA: what attention wrote as AttentionSequence::lse2; null: computed anew.
  const float* lse2 = nullptr;

  int64_t key_count() const { return keys > 0 ? keys : tokens; }
};

/// Gradients of attention; softcap, ALiBi and what follows as AttentionArgs'. Scores are computed anew, a block of
/// queries at a time. CUDA has fast kernels for causal attention without relative biases.
struct AttentionGradientArgs {
  const AttentionGradientSequence* sequences;
  int64_t sequence_count;
  int64_t heads, kv_heads, head_dim;
  float scale;
  int64_t window;             // > 0: only the last `window` keys
  const float* alibi_slopes;  // (heads), or null
  DType dtype = DType::f32;
  float softcap = 0;
  DType alibi_dtype = DType::f32;
  float alibi_scale = 1;
  bool is_causal = true;
  const float* relative_bias = nullptr;
  int64_t relative_span = 0;
  int64_t lse_stride = 0;  // as AttentionArgs'
  /// As relative_bias, which is trained: its gradient is added. Null: not asked for.
  float* drelative_bias = nullptr;
};

/// Row i: loss[i] = log sum exp(logits[i]) - logits[i, target], and logits become `scale` times their gradient.
/// A target below zero is left out: its loss is 0 and its gradient zero.
struct CrossEntropyArgs {
  float* logits;  // (rows, vocab)
  const int32_t* targets;
  int64_t rows, vocab;
  float scale;
  float* loss;  // (rows)
  DType dtype = DType::f32;
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
  DType dtype = DType::f32;
};

/// The update of a linear layer by a low-rank adapter: low = scale * dropout(x) a^T, y += low b^T. x, y and low are of
/// `dtype`: on CUDA bf16, on the CPU f32; products are summed in fp32; a and b are rounded to `dtype`. Dropout is
/// DropoutArgs', from position 0 on. A backend may lack this entry and the next; they need rank <= kMaxLowRank, and
/// CUDA needs cols and rows that are multiples of 8.
struct LowRankArgs {
  const void* x;  // (m, cols)
  int64_t m, cols, rows, rank;
  const float* a;  // (rank, cols)
  const float* b;  // (rows, rank)
  float scale, p;
  uint64_t seed;
  void* low_transposed;  // (padded_rank(rank), m rounded up to a multiple of 8): written
  void* y;               // (m, rows); null: only low is wanted
  DType dtype = DType::bf16;
};

inline constexpr int64_t kMaxLowRank = 64;
constexpr int64_t padded_rank(int64_t rank) { return rank <= 16 ? 16 : rank <= 32 ? 32 : 64; }

/// Gradients of LowRankArgs; those in a and b unless they are null.
struct LowRankGradientArgs {
  const void* x;
  int64_t m, cols, rows, rank;
  const float* a;
  const float* b;
  float scale, p;
  uint64_t seed;
  const void* low_transposed;  // as LowRankArgs left it
  const void* dy;              // (m, rows)
  float* da;
  bool accumulate_a;
  float* db;
  bool accumulate_b;
  void* dx;  // (m, cols), added to; or null
  DType dtype = DType::bf16;
};

/// out row r (=, or += if accumulate) x row r * scale + bias, column by column. On a GPU x and out may be bf16.
struct ScaleColumnsArgs {
  const float* x;      // (rows, cols)
  const float* scale;  // (cols)
  const float* bias;   // (cols), or null
  int64_t rows, cols;
  float* out;  // row r at out + r * out_stride
  int64_t out_stride;
  bool accumulate;
  DType x_dtype = DType::f32, out_dtype = DType::f32;
};

/// sums[c] += sum over r of x[r, c] * y[r, c], or of x[r, c] where y is null.
struct SumColumnsArgs {
  const float* x;  // (rows, cols)
  const float* y;
  int64_t rows, cols;
  float* sums;               // (cols)
  DType dtype = DType::f32;  // of x and y
};

/// The gradient of RouteExpertsArgs in the logits. A backend may lack it and the next.
struct RouteExpertsGradientArgs {
  const float* logits;  // (tokens, experts)
  int64_t tokens, experts, top_k;
  bool normalize;
  const int32_t* ids;     // (tokens, top_k), as RouteExpertsArgs gave them
  const float* dweights;  // (tokens, top_k)
  float* dlogits;         // (tokens, experts): written
};

/// dots[i] = x row i . y row rows[i]: the gradient of ScatterAddRowsArgs in the weights.
struct DotRowsArgs {
  const float* x;  // (count, cols)
  const int32_t* rows;
  const float* y;
  int64_t count, cols;
  float* dots;  // (count)
};

/// y += scale * x.
struct AddScaledArgs {
  const float* x;
  int64_t count;
  float scale;
  float* y;
  DType dtype = DType::f32;
};

}  // namespace nibble::kernels
