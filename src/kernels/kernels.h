// Every kernel entry: its arguments and contract. A backend fills the table; an empty entry means unsupported.
//
// Contracts that hold for all entries:
//  - Pointers and sizes only; nothing is checked here (ops/ checks), nothing allocates what the caller keeps, throws
//    or prints. Arrays are dense and row-major. Sizes are 64-bit. Inputs and outputs do not overlap unless said.
//  - Any pointer may have the alignment of its element type only.
//  - Results do not depend on the number of threads, and a row's result does not depend on the other rows' values
//    (matmul_int8 with a threshold is the exception: the outlier columns are those of the whole call).
#pragma once

#include <cstdint>

#include "base/thread_pool.h"
#include "kernels/gradients.h"
#include "kernels/optimizer_step.h"
#include "kernels/sampling.h"
#include "nibble/types.h"
#include "quant/format.h"

namespace nibble::kernels {

/// Device memory for what an entry needs between its launches.
class Scratch {
 public:
  virtual ~Scratch() = default;
  /// At least `size_bytes`, 256-byte aligned, of any contents; the next reserve() takes it back.
  /// Errors: out_of_memory.
  virtual void* reserve(int64_t size_bytes) = 0;
};

/// Where a kernel runs. On a GPU, entries put their work on the stream and return at once; arrays lie in device memory,
/// but what the Args point to as `code_book`, jobs, sequences and the like lies with the caller and is read during the
/// call. Launch errors are left for the caller to ask for.
struct Context {
  ThreadPool* pool = nullptr;  // null: the calling thread alone
  void* stream = nullptr;      // CUDA: the cudaStream_t
  Scratch* scratch = nullptr;  // CUDA: never null
  /// CUDA: kCounters zeros in device memory, for blocks that count each other; every launch leaves them zero.
  uint32_t* counters = nullptr;
  int capability = 0;       // CUDA: 75 for compute capability 7.5, ... 90: cuda::usable_capability()
  int multiprocessors = 0;  // CUDA
};

inline constexpr int64_t kCounters = 16384;

// ---- quantize and dequantize ---------------------------------------------------------------------------------------

/// Per-block maxima of a blockwise quantized tensor: plain fp32, or nested (8-bit codes of absmax - offset).
/// absmax of block b = values[b], or nested_code_book[codes[b]] * nested_absmax[b / 256] + offset, in fp32, unfused.
struct Absmax {
  const float* values = nullptr;            // (blocks); null when nested
  const uint8_t* codes = nullptr;           // (blocks)
  const float* nested_absmax = nullptr;     // (ceil(blocks / 256))
  const float* nested_code_book = nullptr;  // (256)
  float offset = 0;
};

/// Blockwise 4-bit: packed[(count + 1) / 2] and absmax[ceil(count / block)] from count values.
/// absmax ignores NaN, and is 0 where it would be denormal. y = x * (1 / absmax); code by CodeBook4Bit
/// (quant/encode.h). `block` is even; an odd count is padded with an element of 0. Edge cases: docs/formats/nf4.md.
struct Quantize4BitArgs {
  const void* x;  // (count) of `dtype`: f32, bf16 or f16
  DType dtype;
  int64_t count;
  int64_t block;
  const quant::CodeBook4Bit* code_book;
  uint8_t* packed;
  float* absmax;
};

/// out[i] = dtype(values[code i] * absmax of block i / block): one fp32 product, one rounding to nearest even.
struct Dequantize4BitArgs {
  const uint8_t* packed;
  Absmax absmax;
  int64_t count;
  int64_t block;
  const float* code_book;  // (16)
  void* out;               // (count) of `dtype`: f32, bf16 or f16
  DType dtype;
};

/// Blockwise 8-bit: the nearest of 256 ascending code book values to x * (1 / absmax) by fp32 midpoints, ties to the
/// even index. absmax as for 4 bits. A block whose absmax is zero, and an element that is NaN, get code 0.
struct Quantize8BitArgs {
  const void* x;  // (count) of `dtype`: f32, bf16 or f16
  DType dtype;
  int64_t count;
  int64_t block;           // any positive number
  const float* code_book;  // (256)
  uint8_t* codes;          // (count)
  float* absmax;           // (ceil(count / block))
};

/// out[i] = dtype(code_book[codes[i]] * absmax[i / block]).
struct Dequantize8BitArgs {
  const uint8_t* codes;
  const float* absmax;
  int64_t count;
  int64_t block;
  const float* code_book;  // (256)
  void* out;
  DType dtype;
};

/// Double quantization's offset: *mean = the mean of x, summed in double and rounded once; x -= *mean.
struct CenterArgs {
  float* x;  // (count)
  int64_t count;
  float* mean;  // 0 if count is 0
};

/// LLM.int8() rows of x rounded to fp16: absmax[r] over |x| < threshold (all if that is 0), q = rint(x * (127 * (1 /
/// absmax))), half to even. NaN becomes 0 and is ignored by absmax; magnitudes stop at 127 (quant/int8_vectorwise.h).
/// Elements with |x| >= threshold become 0 and set outlier_columns[column] = 1; the caller zeroes that array before.
struct QuantizeInt8RowsArgs {
  const void* x;  // (rows, cols) of `dtype`: f32, bf16 or f16
  DType dtype;
  int64_t rows, cols;
  float threshold;
  int8_t* q;                 // (rows, cols)
  float* absmax;             // (rows)
  uint8_t* outlier_columns;  // (cols), may be null when threshold is 0
};

/// out[r, c] = dtype(q * absmax[r] * fp32(1 / 127)).
struct DequantizeInt8RowsArgs {
  const int8_t* q;
  const float* absmax;
  int64_t rows, cols;
  void* out;
  DType dtype;
};

// ---- matmul: y (m, rows) = x (m, cols) . w (rows, cols)^T ----------------------------------------------------------

/// The left side that the jobs of one call share (q, k and v; gate and up).
struct MatmulInput {
  const void* x;  // (m, cols) of x_dtype
  int64_t m;
  int64_t cols;
  /// What the products are rounded to before fp32 accumulation: x and the decoded weight each to `compute`.
  /// f32: nothing is rounded. bf16, f16: to nearest even (f16 on the CPU rounds x and multiplies in fp32).
  /// For few rows of x the CPU rounds 4-bit code book values, scaled to lie near bf16 ones, instead of every product
  /// with absmax: about half the error.
  DType compute;
  /// true: a row's bits do not depend on m.
  bool batch_invariant = false;
  /// f32, or bf16 on CUDA and in the reference.
  DType x_dtype = DType::f32;

  const float* x_f32() const { return static_cast<const float*>(x); }
};

/// Where one product goes: y[i * y_stride + n] (=, or += if accumulate) x_i . w_n + bias[n]. A bf16 y is added to in
/// fp32 and rounded to once; for many rows its bias may be rounded to bf16 before.
struct MatmulOutput {
  void* y;  // of y_dtype
  int64_t y_stride;
  const float* bias = nullptr;  // (rows) or null
  bool accumulate = false;
  /// f32, or bf16 on CUDA and in the reference.
  DType y_dtype = DType::f32;

  float* y_f32() const { return static_cast<float*>(y); }
};

struct Matmul4BitJob {
  const uint8_t* packed;  // (rows * cols + 1) / 2 bytes; blocks run over the flattened weight and may cross rows
  Absmax absmax;
  int64_t block;
  const float* code_book;  // (16)
  int64_t rows;
  MatmulOutput out;
};

struct MatmulDenseJob {
  const void* w;  // (rows, cols) of `dtype`: f32, bf16 or f16
  DType dtype;
  int64_t rows;
  MatmulOutput out;
};

/// LLM.int8(): x is rounded to fp16 and quantized by rows without its outliers (|x| >= threshold), multiplied in int32
/// and scaled by row absmax * weight absmax / 127^2. Columns that hold an outlier in any row of the call are multiplied
/// with the dequantized weight instead, both rounded to `compute`; what of x is too large for f16 stays as it is (above
/// eight rows on CUDA: all of x and the weights are rounded to bf16 then). threshold 0: no outliers.
struct MatmulInt8Job {
  const int8_t* w;      // (rows, cols)
  const float* absmax;  // (rows)
  int64_t rows;
  MatmulOutput out;
};

enum class Activation : uint8_t { silu, gelu, gelu_tanh, relu, quick_gelu, tanh_ };

/// matmul_4bit or matmul_int8 with what stands around it in a layer, for few rows of x. The left side is
/// rms_norm(input.x) if norm_weight is there. If `is_gated`, the two jobs have as many rows, and gated_out =
/// activation(first) * second is written instead of what they say (their biases count).
template <typename Job>
struct FusedMatmulArgs {
  MatmulInput input;
  const float* norm_weight = nullptr;  // (cols), as RmsNormArgs
  float eps = 0, weight_offset = 0;
  const Job* jobs = nullptr;
  int64_t count = 0;
  bool is_gated = false;
  Activation activation = Activation::silu;
  MatmulOutput gated_out = {};  // bias and accumulate unused
  float threshold = 0;          // of LLM.int8()
};
using Fused4BitArgs = FusedMatmulArgs<Matmul4BitJob>;
using FusedInt8Args = FusedMatmulArgs<MatmulInt8Job>;

// ---- the rest of a decoder layer ------------------------------------------------------------------------------------
// Arithmetic is fp32. What passes between kernels is fp32, or bf16 on CUDA and in the reference where a `_dtype` field
// says so: one rounding at the end. The *_f32() are for backends and calls without bf16.

/// out (=, or += if accumulate) x / sqrt(mean(x^2) + eps) * (weight + weight_offset); weight_offset is 1 for Gemma.
/// out may be x of the same type, unless accumulate.
struct RmsNormArgs {
  const void* x;  // (rows, cols)
  const float* weight;
  int64_t rows, cols;
  float eps;
  float weight_offset;
  void* out;
  bool accumulate = false;
  DType x_dtype = DType::f32;
  DType out_dtype = DType::f32;

  const float* x_f32() const { return static_cast<const float*>(x); }
  float* out_f32() const { return static_cast<float*>(out); }
};

/// out = (x - mean) / sqrt(variance + eps) * weight + bias; bias may be null. out may be x of the same type.
struct LayerNormArgs {
  const void* x;        // (rows, cols)
  const float* weight;  // (sets, cols): row r takes set r % sets
  const float* bias;    // the same
  int64_t rows, cols;
  float eps;
  void* out;
  int64_t sets = 1;  // more than one where every head has a norm of its own
  DType x_dtype = DType::f32;
  DType out_dtype = DType::f32;

  const float* x_f32() const { return static_cast<const float*>(x); }
  float* out_f32() const { return static_cast<float*>(out); }
};

/// Rotates the first `rotary_dim` of each head in place by the angles of its token.
/// Rotate-half pairs (i, i + rotary_dim / 2); interleaved pairs (2i, 2i + 1).
struct RopeArgs {
  void* x;  // (tokens, heads, head_dim), token t at x + t * stride
  int64_t stride;
  const float* cos;  // (tokens, rotary_dim / 2)
  const float* sin;
  int64_t tokens, heads, head_dim, rotary_dim;
  bool interleaved;
  DType x_dtype = DType::f32;

  float* x_f32() const { return static_cast<float*>(x); }
};

/// What a projection to q, k and v in one made: each row is `groups` times [q_per_group q heads | kv_per_group k heads
/// | kv_per_group v heads]. GPT-2: one group; GPT-NeoX: one per head; Falcon: one per kv head. Outputs are dense, heads
/// in the order in which they stand in a row.
struct SplitHeadsArgs {
  const void* x;  // (tokens, groups * (q_per_group + 2 * kv_per_group) * head_dim)
  int64_t tokens, groups, q_per_group, kv_per_group, head_dim;
  void* q;  // (tokens, groups * q_per_group, head_dim)
  void* k;  // (tokens, groups * kv_per_group, head_dim)
  void* v;
  DType dtype = DType::f32;  // of all four

  const float* x_f32() const { return static_cast<const float*>(x); }
  float* q_f32() const { return static_cast<float*>(q); }
  float* k_f32() const { return static_cast<float*>(k); }
  float* v_f32() const { return static_cast<float*>(v); }
};

/// One sequence's share of an attention call. Its new keys and values are already in the cache.
struct AttentionSequence {
  const void* q;  // (tokens, heads, head_dim), token t at q + t * q_stride
  const void* k;  // (kv_heads, capacity, head_dim) of kv_dtype
  const void* v;
  int64_t capacity;
  int64_t tokens;    // new tokens
  int64_t past;      // tokens before them; query t stands at past + t and sees keys 0 .. past + t
  void* out;         // (tokens, heads, head_dim), dense
  int64_t keys = 0;  // if not causal: every query sees keys 0 .. keys - 1
  /// CUDA, for a call that is recorded and run again: `past` in device memory; the field above is the most it can be.
  const int32_t* past_at = nullptr;
  /// For a kv_dtype of i8: (kv_heads, capacity) each; element d of a key is its code times the key's scale.
  float* k_scales = nullptr;
  float* v_scales = nullptr;
  /// CUDA and the reference, without past_at and i8: log2 of each query's sum of 2^(log2(e) score), head h's from
  /// h * AttentionArgs::lse_stride on; null: not written.
  float* lse2 = nullptr;

  const float* q_f32() const { return static_cast<const float*>(q); }
  float* out_f32() const { return static_cast<float*>(out); }
};

/// softmax(scale * q k^T + bias) v. Softmax in fp32.
struct AttentionArgs {
  const AttentionSequence* sequences;
  int64_t sequence_count;
  int64_t heads, kv_heads, head_dim;
  int64_t q_stride;
  DType kv_dtype;  // f32, bf16 or f16; i8 on CUDA and in the reference
  float scale;
  float softcap = 0;                    // > 0: scores become softcap * tanh(score / softcap)
  int64_t window = 0;                   // > 0: only the last `window` keys
  const float* alibi_slopes = nullptr;  // (heads): adds alibi_scale * (slope * key position)
  DType alibi_dtype = DType::f32;       // or bf16: the position and then the product are rounded to it
  float alibi_scale = 1;
  bool is_causal = true;
  /// (heads, 2 * relative_span - 1): adds bias[head][key - query + relative_span - 1]. relative_span is more than every
  /// distance between a query and a key.
  const float* relative_bias = nullptr;
  int64_t relative_span = 0;
  DType q_dtype = DType::f32;  // of every q and out
  int64_t lse_stride = 0;
};

/// Appends new keys or values to one sequence's cache. i8: the scale of a key is its largest magnitude / 127, and its
/// codes are rint(x * (127 / that)); zeros if that is 0 or denormal. (CUDA
/// writes codes by rotate_append alone.)
struct CacheAppendArgs {
  const void* x;  // (tokens, kv_heads, head_dim), token t at x + t * stride
  int64_t stride;
  void* cache;  // (kv_heads, capacity, head_dim) of `dtype`
  DType dtype;
  int64_t capacity, tokens, past, kv_heads, head_dim;
  const int32_t* past_at = nullptr;  // as AttentionSequence's
  float* scales = nullptr;           // for i8
  DType x_dtype = DType::f32;

  const float* x_f32() const { return static_cast<const float*>(x); }
};

/// What stands between a layer's projections and its attention, in one go: rope on q (in place) and on k, then
/// cache_append of k and v. A backend may lack it. The sequences' tokens stand one after the other in q, k and v; of a
/// sequence, `k` and `v` (here written), capacity, tokens, past and past_at count.
struct RotateAppendArgs {
  void* q;  // (tokens, heads, head_dim), token t at q + t * q_stride
  const void* k;
  const void* v;
  int64_t q_stride, k_stride, v_stride;
  const float* cos;  // (tokens, rotary_dim / 2)
  const float* sin;
  int64_t rotary_dim;  // 0: nothing is rotated
  bool interleaved;
  int64_t heads, kv_heads, head_dim;
  const AttentionSequence* sequences;
  int64_t sequence_count;
  DType kv_dtype;
  DType x_dtype = DType::f32;  // of q, k and v
};

/// out[r, c] = act(gate[r, c]) * up[r, c]; up may be null (then no product). out may be gate or up, of
/// the same type.
struct ActivateArgs {
  const void* gate;  // row r at gate + r * stride
  const void* up;
  int64_t stride;
  int64_t rows, cols;
  Activation activation;
  void* out;                   // (rows, cols), dense
  DType x_dtype = DType::f32;  // of gate and up
  DType out_dtype = DType::f32;

  const float* gate_f32() const { return static_cast<const float*>(gate); }
  const float* up_f32() const { return static_cast<const float*>(up); }
  float* out_f32() const { return static_cast<float*>(out); }
};

/// out row i (=, or += if accumulate) scale * float(table row ids[i]).
struct EmbedArgs {
  const void* table;  // (vocab, cols) of `dtype`: f32, bf16 or f16
  DType dtype;
  const int32_t* ids;
  int64_t count, cols;
  float scale;
  void* out;
  bool accumulate = false;
  DType out_dtype = DType::f32;

  float* out_f32() const { return static_cast<float*>(out); }
};

/// x = cap * tanh(x / cap), in place.
struct SoftcapArgs {
  float* x;  // (count)
  int64_t count;
  float cap;
};

/// out[r]: the column of the largest value of row r, the lowest of equals; NaN never wins; -1 if nothing is above
/// minus infinity.
struct ArgmaxArgs {
  const float* x;  // (rows, cols)
  int64_t rows, cols;
  int32_t* out;  // (rows)
};

/// The experts of each token: the top_k largest of softmax(logits), the lower index first among equals, in falling
/// order; their probabilities, divided by their sum if `normalize`.
struct RouteExpertsArgs {
  const float* logits;  // (tokens, experts)
  int64_t tokens, experts, top_k;
  bool normalize;
  int32_t* ids;    // (tokens, top_k)
  float* weights;  // (tokens, top_k)
};

/// out row rows[i] += weights[i] * x row i. `rows` holds no number twice.
struct ScatterAddRowsArgs {
  const float* x;  // (count, cols)
  const int32_t* rows;
  const float* weights;  // (count)
  int64_t count, cols;
  float* out;
  DType dtype = DType::f32;  // of x and out: f32, on CUDA also bf16
};

// ---- the table ------------------------------------------------------------------------------------------------------

template <typename Args>
using Entry = void (*)(const Context&, const Args&);

/// A matmul entry takes the shared input and `count` jobs, so that q, k and v need one parallel loop.
template <typename Job>
using MatmulEntry = void (*)(const Context&, const MatmulInput&, const Job* jobs, int64_t count);

struct Kernels {
  const char* name = "";  // "reference", "cpu (avx512)", ...
  Entry<Quantize4BitArgs> quantize_4bit = nullptr;
  Entry<Dequantize4BitArgs> dequantize_4bit = nullptr;
  Entry<Quantize8BitArgs> quantize_8bit = nullptr;
  Entry<Dequantize8BitArgs> dequantize_8bit = nullptr;
  Entry<CenterArgs> center = nullptr;
  Entry<QuantizeInt8RowsArgs> quantize_int8_rows = nullptr;
  Entry<DequantizeInt8RowsArgs> dequantize_int8_rows = nullptr;
  MatmulEntry<Matmul4BitJob> matmul_4bit = nullptr;
  /// May be missing; false: nothing was done, as the call does not suit it. That does not depend on m if
  /// batch_invariant.
  bool (*matmul_4bit_fused)(const Context&, const Fused4BitArgs&) = nullptr;
  MatmulEntry<MatmulDenseJob> matmul_dense = nullptr;
  void (*matmul_int8)(const Context&, const MatmulInput&, float threshold, const MatmulInt8Job* jobs,
                      int64_t count) = nullptr;
  bool (*matmul_int8_fused)(const Context&, const FusedInt8Args&) = nullptr;  // as matmul_4bit_fused
  Entry<RmsNormArgs> rms_norm = nullptr;
  Entry<LayerNormArgs> layer_norm = nullptr;
  Entry<RopeArgs> rope = nullptr;
  Entry<CacheAppendArgs> cache_append = nullptr;
  Entry<RotateAppendArgs> rotate_append = nullptr;
  Entry<AttentionArgs> attention = nullptr;
  /// rotate_append and then attention of the same sequences, except that q may stay as it was. May be missing; false:
  /// nothing was done, as the call does not suit it, which does not depend on the number of sequences.
  bool (*rotate_attention)(const Context&, const RotateAppendArgs&, const AttentionArgs&) = nullptr;
  Entry<ActivateArgs> activate = nullptr;
  Entry<EmbedArgs> embed = nullptr;
  Entry<SplitHeadsArgs> split_heads = nullptr;
  Entry<SoftcapArgs> softcap = nullptr;
  Entry<ArgmaxArgs> argmax = nullptr;
  Entry<PenalizeArgs> penalize = nullptr;
  Entry<TopCandidatesArgs> top_candidates = nullptr;
  Entry<RouteExpertsArgs> route_experts = nullptr;
  Entry<ScatterAddRowsArgs> scatter_add_rows = nullptr;
  // Training (gradients.h).
  Entry<InputGradientArgs> input_gradient = nullptr;
  Entry<WeightGradientArgs> weight_gradient = nullptr;
  Entry<RmsNormGradientArgs> rms_norm_gradient = nullptr;
  Entry<LayerNormGradientArgs> layer_norm_gradient = nullptr;
  Entry<ActivateGradientArgs> activate_gradient = nullptr;
  Entry<AttentionGradientArgs> attention_gradient = nullptr;
  Entry<CrossEntropyArgs> cross_entropy = nullptr;
  Entry<DropoutArgs> dropout = nullptr;
  Entry<AddScaledArgs> add_scaled = nullptr;
  Entry<LowRankArgs> low_rank_update = nullptr;            // a backend may lack it
  Entry<LowRankGradientArgs> low_rank_gradient = nullptr;  // likewise
  Entry<ScaleColumnsArgs> scale_columns = nullptr;
  Entry<SumColumnsArgs> sum_columns = nullptr;
  Entry<RouteExpertsGradientArgs> route_experts_gradient = nullptr;  // likewise
  Entry<DotRowsArgs> dot_rows = nullptr;
  // Training (optimizer_step.h).
  Entry<OptimizerStep32BitArgs> optimizer_step_32bit = nullptr;
  Entry<OptimizerStep8BitArgs> optimizer_step_8bit = nullptr;
  Entry<SumSquaresArgs> sum_squares = nullptr;
};

}  // namespace nibble::kernels
