// A decoder layer with its weights, and the state of a pass that runs through it.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "models/decoder.h"
#include "models/spec.h"
#include "models/weights.h"
#include "nn/linear.h"
#include "nn/norm.h"

namespace nibble::models {

/// The modules of one MLP; those that the spec lacks are empty (rows == 0).
struct MlpWeights {
  nn::Linear gate, up, gate_up, down;
};

/// The modules of one attention block; those that the spec lacks are empty.
struct AttentionWeights {
  std::optional<nn::Norm> q_norm, k_norm;
  nn::Linear q, k, v, qkv, out;
};

/// A LayerSpec bound to its weights.
struct Layer {
  const LayerSpec* spec;
  std::optional<nn::Norm> attention_norm, attention_out_norm, attention_sum_norm;
  std::optional<nn::Norm> cross_norm;
  std::optional<nn::Norm> mlp_norm, mlp_out_norm, mlp_sum_norm;
  AttentionWeights attention, cross;
  nn::Linear router;
  std::vector<MlpWeights> mlps;  // one, or one per expert
};

/// `prefix` is the layer's: "model.layers.0.". `updates` may be null; it must outlive the layer.
Layer bind_layer(const ops::Backend& backend, const ModelSpec& model, const LayerSpec& spec, const std::string& prefix,
                 const Weights& weights, const Updates* updates = nullptr);
/// The norm at `prefix` + spec.module, or nothing if the spec names none.
std::optional<nn::Norm> bind_norm(const ops::Backend& backend, const Weights& weights, const std::string& prefix,
                                  const NormSpec& spec, const Updates* updates = nullptr);
/// A parameter that is not quantized, or what `updates` put in its place.
const Tensor& parameter_of(const Weights& weights, const Updates* updates, const std::string& name);
nn::Linear bind_linear(const ops::Backend& backend, const ModelSpec& model, const Weights& weights,
                       const std::string& path, const Updates* updates = nullptr);

/// What the buffers of a workspace hold.
enum class Slot : size_t {
  hidden,      // (tokens, hidden): the residual stream
  normed,      // (tokens, hidden): what a block reads
  normed_mlp,  // the same for an MLP beside attention with a norm of its own
  branch,      // (tokens, hidden): what a block adds, before its own norm
  embedded,    // (tokens, embedding width), where that is not hidden
  qkv,
  query,
  key,
  value,
  attended,
  gate_up,
  activated,
  routed,     // (tokens, experts)
  expert_in,  // (rows, hidden)
  expert_out,
  expert_ids,  // (tokens, top_k), as int32
  expert_weights,
  expert_rows,  // the same by expert, as int32
  expert_row_weights,
  logits,  // on a GPU, before they are copied to the caller
  last,    // (sequences, hidden): the last token of each
  projected,
};

/// The state of one forward pass.
struct Pass {
  const ops::Backend& backend;
  const ModelSpec& model;
  std::span<const SequenceTokens> sequences;
  Workspace& workspace;
  int64_t tokens;
  bool batch_invariant;
  DType cache_dtype;
  DType activations;                                       // f32, or bf16
  int64_t longest;                                         // 0, or what prepare() was told
  const float* alibi_slopes;                               // (heads), or null
  float* hidden = nullptr;                                 // (tokens, hidden_size)
  const int32_t* ids = nullptr;                            // (tokens)
  const int32_t* positions = nullptr;                      // (tokens): rows of the position embedding
  const int32_t* last = nullptr;                           // (sequences): the last token of each
  const int32_t* pasts = nullptr;                          // (sequences)
  std::vector<const float*> cos = {}, sin = {};            // per rope: (tokens, rotary_dim / 2)
  std::vector<RelativeBiasTable> relative_bias = {};       // per ModelSpec::relative_biases
  std::vector<kernels::AttentionSequence> attention = {};  // per sequence
  /// What a block is given as x still has to go through this norm, with the projection if a kernel can.
  const nn::Norm* deferred_norm = nullptr;

  float* get(Slot slot, int64_t count) { return workspace.get(static_cast<size_t>(slot), count); }
  /// A buffer for activations of the model's type; the residual stream and logits are always fp32.
  nn::Values get_values(Slot slot, int64_t count) {
    return {get(slot, activations == DType::f32 ? count : (count + 1) / 2), activations};
  }
};

/// The first projections of a block, on x after the deferred norm; with `gate`, null or the end of an MLP. True if a
/// gate was there and has been applied.
bool run_projections(Pass& pass, nn::ConstValues x, int64_t rows, std::span<const nn::LinearCall> calls,
                     const nn::Gate* gate = nullptr);

/// x (tokens, hidden) through layer `index`: pass.hidden is read and added to.
void run_layer(Pass& pass, const Layer& layer, int64_t index);

// The blocks of a layer. Each adds its result to `sum` (tokens, hidden), or writes it there.
void run_attention(Pass& pass, const Layer& layer, int64_t index, nn::ConstValues x, float* sum, bool accumulate);
void run_cross_attention(Pass& pass, const Layer& layer, int64_t index, nn::ConstValues x, float* sum, bool accumulate);
void run_mlp(Pass& pass, const Layer& layer, const MlpWeights& weights, nn::ConstValues x, int64_t rows, float* sum,
             bool accumulate);
/// Always adds.
void run_experts(Pass& pass, const Layer& layer, nn::ConstValues x, float* sum);

/// The keys and values of cross-attention from the encoder's output (tokens, hidden), into an empty cache with room.
void fill_source(Pass& pass, const Layer& layer, int64_t index, nn::ConstValues encoded, nn::KvCache& source);

}  // namespace nibble::models
