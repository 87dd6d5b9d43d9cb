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

/// Non-persistent tensors that get_memory_footprint counts; always fp32 here.
struct BufferSpec {
  std::string name;
  int64_t count = 0;
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
};

ModuleSpec container(std::string name, std::string class_name, std::vector<ModuleSpec> children);
ModuleSpec linear(std::string name, int64_t in_features, int64_t out_features, bool has_bias);
/// A negative padding_idx counts from the end, as in torch.
ModuleSpec embedding(std::string name, int64_t count, int64_t dim, std::optional<int64_t> padding_idx);
ModuleSpec rms_norm(std::string name, std::string class_name, int64_t size, double eps);
/// A module without parameters: an activation, a rotary embedding.
ModuleSpec plain_module(std::string name, std::string class_name, std::vector<BufferSpec> buffers = {});

/// How a norm is computed; its weights are those of the module of that name.
struct NormSpec {
  std::string module;  // path inside the layer ("input_layernorm"), or from the root for the final norm
  nn::NormKind kind = nn::NormKind::rms;
  double eps = 1e-6;
  float weight_offset = 0;

  explicit operator bool() const { return !module.empty(); }
};

/// Names are paths of modules inside the layer.
struct AttentionSpec {
  std::string q, k, v, out;
  NormSpec q_norm = {}, k_norm = {};  // over head_dim, before the rotation; empty: none
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 1;
  float softcap = 0;
  int64_t window = 0;  // > 0: only the last `window` keys
  size_t rope = 0;     // index into ModelSpec::ropes
};

/// down(act(gate x) * up x).
struct MlpSpec {
  std::string gate, up, down;
  kernels::Activation activation = kernels::Activation::silu;
  int64_t intermediate_size = 0;
};

/// x += attention(attention_norm(x)); x += mlp(mlp_norm(x)).
struct LayerSpec {
  NormSpec attention_norm, mlp_norm;
  AttentionSpec attention;
  MlpSpec mlp;
};

struct ModelSpec {
  std::string architecture;  // "LlamaForCausalLM"
  ModuleSpec root;
  std::string base_prefix;  // "model.": hub files may lack it
  std::string embed;        // path of the token embedding: "model.embed_tokens"
  float embed_scale = 1;
  std::string layers_prefix;  // "model.layers."
  std::vector<LayerSpec> layers;
  NormSpec final_norm;
  std::string head;  // "lm_head"
  std::vector<nn::RopeSpec> ropes;
  /// Parameters that are one tensor: (name, the one it shares).
  std::vector<std::pair<std::string, std::string>> tied;
  /// Stored tensors that are no parameters, by the end of their names: ".rotary_emb.inv_freq".
  std::vector<std::string> ignored_suffixes;

  int64_t hidden_size = 0;
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
};

/// The tensor a tied name shares, or the name itself.
const std::string& resolve_tied(const ModelSpec& spec, const std::string& name);

}  // namespace nibble::models
