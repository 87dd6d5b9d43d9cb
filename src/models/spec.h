// ModelSpec: everything nibble knows about an architecture, as data. The decoder runs it; the tree names it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/kernels.h"
#include "nn/norm.h"
#include "nn/rope.h"
#include "tensor/tensor.h"

namespace nibble::models {

enum class ModuleKind : uint8_t { container, module_list, linear, embedding, norm, other };

struct ParameterSpec {
  std::string name;  // "weight"
  Shape shape;       // as stored by transformers
};

/// Non-persistent tensors that get_memory_footprint counts.
struct BufferSpec {
  std::string name;
  int64_t count = 0;
  std::optional<DType> dtype = DType::f32;  // nullopt: the model's
};

/// A node of the module tree, in torch's registration order.
struct ModuleSpec {
  ModuleKind kind = ModuleKind::container;
  std::string name;        // "q_proj"
  std::string class_name;  // "Linear"
  std::string detail;      // what stands between the parentheses of a leaf: "in_features=576, ..."
  std::vector<ParameterSpec> parameters;
  std::vector<BufferSpec> buffers;
  std::vector<ModuleSpec> children;
  /// Conv1D: a linear layer whose weight is (in, out) in files and `parameters`, unless it is quantized.
  bool is_transposed = false;
  std::string quantized_detail;  // if not `detail`
};

/// (out, in) of a linear layer's weight.
Shape weight_shape(const ModuleSpec& linear);

ModuleSpec container(std::string name, std::string class_name, std::vector<ModuleSpec> children,
                     std::vector<BufferSpec> buffers = {});
/// A ModuleList of `count` equal modules.
ModuleSpec module_list(std::string name, const std::string& class_name, int64_t count,
                       const std::vector<ModuleSpec>& children);
ModuleSpec linear(std::string name, int64_t in_features, int64_t out_features, bool has_bias);
/// transformers' Conv1D: GPT-2's linear layer.
ModuleSpec conv1d(std::string name, int64_t in_features, int64_t out_features);
/// A negative padding_idx counts from the end, as in torch.
ModuleSpec embedding(std::string name, int64_t count, int64_t dim, std::optional<int64_t> padding_idx);
ModuleSpec rms_norm(std::string name, std::string class_name, int64_t size, double eps);
enum class Affine : uint8_t { none, weight, weight_and_bias };
ModuleSpec layer_norm(std::string name, int64_t size, double eps, Affine affine = Affine::weight_and_bias);
ModuleSpec dropout(std::string name, double p);
/// A module without parameters: an activation, a rotary embedding.
ModuleSpec plain_module(std::string name, std::string_view class_name, std::vector<BufferSpec> buffers = {});

/// How a norm is computed; its weights are those of the module of that name, or ones if it has none.
struct NormSpec {
  std::string module;  // path inside the layer ("input_layernorm"), or from the root for the final norm
  nn::NormKind kind = nn::NormKind::rms;
  double eps = 1e-6;
  float weight_offset = 0;
  int64_t size = 0;   // only for a norm without weights
  float scale = 1;    // its result is multiplied by this
  int64_t count = 0;  // > 0: of norms, one per head: MODULE.0, MODULE.1, ...

  explicit operator bool() const { return !module.empty(); }
};

/// Names are paths of modules inside the layer.
struct AttentionSpec {
  std::string q, k, v, out;
  std::string qkv = {};               // in place of q, k and v: one projection to all three
  int64_t qkv_groups = 1;             // how its rows are ordered: kernels::SplitHeadsArgs
  NormSpec q_norm = {}, k_norm = {};  // over head_dim, or over all heads if so large, before the rotation; empty: none
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 1;
  float softcap = 0;
  int64_t window = 0;                        // > 0: only the last `window` keys
  std::optional<size_t> rope = {};           // index into ModelSpec::ropes
  bool has_alibi = false;                    // ModelSpec::alibi
  bool is_causal = true;                     // false: a token sees those after it, too
  std::optional<size_t> relative_bias = {};  // index into ModelSpec::relative_biases
};

/// T5's positions: a learned number per head, added to a score, for each bucket of distances between query and key.
struct RelativeBiasSpec {
  std::string embed;  // path of the embedding (buckets, heads), from the root
  int64_t buckets = 32;
  int64_t max_distance = 128;  // from here on all distances share a bucket
  bool is_bidirectional = false;
};

/// A token goes through the top_k of `count` MLPs; their results are added, weighted by the router.
struct ExpertsSpec {
  std::string router;  // linear layer (hidden -> count)
  std::string prefix;  // of an expert's modules, before its number: "block_sparse_moe.experts."
  int64_t count = 0;   // 0: no experts, one MLP
  int64_t top_k = 0;
  bool is_normalized = false;  // weights of the chosen ones add up to 1
  double balance_loss = 0;     // factor of the load-balancing loss in training; 0: none
};

/// down(act(gate x) * up x), or down(act(up x)) without a gate. Names are paths inside the layer, or inside the expert.
struct MlpSpec {
  std::string gate, up, down;
  std::string gate_up = {};  // in place of gate and up: one projection to [gate | up]
  kernels::Activation activation = kernels::Activation::silu;
  int64_t intermediate_size = 0;
  ExpertsSpec experts = {};
};

/// x += attention(attention_norm(x)); x += mlp(mlp_norm(x)). A norm that is missing is left out.
/// Between the two, if there is a cross.q: x += cross(cross_norm(x)), whose keys and values come from the encoder.
struct LayerSpec {
  NormSpec attention_norm = {}, mlp_norm = {};
  NormSpec attention_out_norm = {}, mlp_out_norm = {};  // of what is added to x (RMS only)
  NormSpec attention_sum_norm = {}, mlp_sum_norm = {};  // of x after adding: x = norm(x + attention(x))
  bool is_parallel = false;   // the MLP reads x as attention does; without mlp_norm, attention's own input
  bool keeps_normed = false;  // x = attention_norm(x) before adding to it, and so for mlp_norm
  AttentionSpec attention = {};
  NormSpec cross_norm = {};
  AttentionSpec cross = {};
  MlpSpec mlp = {};

  bool has_cross() const { return !cross.q.empty(); }
};

/// What reads the source of an encoder-decoder, with the decoder's token embedding; its layers have no cross-attention.
struct EncoderSpec {
  std::string layers_prefix;  // "encoder.block."
  std::vector<LayerSpec> layers;
  NormSpec final_norm;
};

/// Learned positions: row position + offset of an embedding is added to the token's.
struct PositionSpec {
  std::string embed = {};  // path of the embedding; empty: none
  int64_t offset = 0;
};

/// ALiBi adds scale * (slope * position of the key) to a score; what is in parentheses is computed in `dtype`.
struct AlibiSpec {
  std::vector<float> slopes;  // (heads)
  DType dtype = DType::f32;   // or bf16
  float scale = 1;
};

struct ModelSpec {
  std::string architecture;  // "LlamaForCausalLM"
  ModuleSpec root;
  std::string base_prefix;  // "model.": hub files may lack it
  std::string embed;        // path of the token embedding: "model.embed_tokens"
  float embed_scale = 1;    // rounded to the weights' dtype
  std::string project_in;   // linear layer from the embedding's width to hidden_size; empty: none
  PositionSpec positions;
  NormSpec embed_norm;  // of the sum
  std::optional<EncoderSpec> encoder;
  std::string layers_prefix;  // "model.layers."
  std::vector<LayerSpec> layers;
  NormSpec final_norm;
  std::string project_out;  // linear layer from hidden_size to the head's width; empty: none
  std::string head;         // "lm_head"
  float logit_softcap = 0;  // > 0: logits become cap * tanh(logit / cap)
  std::vector<nn::RopeSpec> ropes;
  AlibiSpec alibi;
  std::vector<RelativeBiasSpec> relative_biases;
  /// Parameters that are one tensor: (name, the one it shares).
  std::vector<std::pair<std::string, std::string>> tied;
  /// Modules that files call by another name: (ours, theirs). Files are written with theirs.
  std::vector<std::pair<std::string, std::string>> aliases;
  /// Stored tensors that are no parameters, by the end of their names: ".rotary_emb.inv_freq".
  std::vector<std::string> ignored_suffixes;
  /// Names of modules that are never quantized, and are float32 where the rest is float16: "wo".
  std::vector<std::string> keep_in_fp32;

  int64_t hidden_size = 0;
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  /// > 0: the rope differs between sequences up to this length and longer ones, so that one that grows past it is
  /// computed anew.
  int64_t renewal_length = 0;
};

/// The name of a parameter in files: with the module's alias, if it has one.
std::string stored_name(const ModelSpec& spec, const std::string& name);

/// The tensor a tied name shares, or the name itself.
const std::string& resolve_tied(const ModelSpec& spec, const std::string& name);

/// The type of module `path`'s parameters in a model of `dtype`, if they are not quantized.
DType parameter_dtype(const ModelSpec& spec, std::string_view path, DType dtype);

}  // namespace nibble::models
