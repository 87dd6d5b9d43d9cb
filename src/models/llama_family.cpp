// Builds the tree and the layers that the family shares.
#include "models/llama_family.h"

#include <algorithm>
#include <cmath>

#include "models/activations.h"
#include "models/rope_config.h"

namespace nibble::models {
namespace {

struct LlamaSizes {
  int64_t hidden, intermediate, layers, heads, kv_heads, head_dim, vocab;
  double eps;
};

LlamaSizes read_llama_sizes(const ConfigReader& config, const LlamaFamily& family) {
  LlamaSizes s{};
  s.hidden = config.integer("hidden_size", 1, kMaxWidth);
  s.intermediate = config.integer("intermediate_size", 1, kMaxWidth);
  s.layers = config.integer("num_hidden_layers", 1, kMaxLayers);
  s.heads = config.integer("num_attention_heads", 1, kMaxHeads);
  s.vocab = config.integer("vocab_size", 1, kMaxVocab);
  s.kv_heads = config.integer_or("num_key_value_heads", family.default_kv_heads.value_or(s.heads), 1, kMaxHeads);
  if (s.heads % s.kv_heads != 0)
    config.refuse("num_key_value_heads", s.kv_heads, fmt::format("a divisor of num_attention_heads ({})", s.heads));
  const auto head_dim = config.find_integer("head_dim", 1, kMaxHeads);
  if (!head_dim && !family.default_head_dim && s.hidden % s.heads != 0)
    config.refuse("num_attention_heads", s.heads, fmt::format("a divisor of hidden_size ({})", s.hidden));
  s.head_dim = head_dim ? *head_dim : family.default_head_dim.value_or(s.hidden / s.heads);
  if (s.heads * s.head_dim > kMaxWidth)
    config.refuse("head_dim", s.head_dim, fmt::format("at most {} for {} heads", kMaxWidth / s.heads, s.heads));
  s.eps = config.number_or("rms_norm_eps", 1e-6, 0, 1);
  return s;
}

ModuleSpec attention_tree(const LlamaSizes& s, const LlamaFamily& family) {
  const int64_t q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
  std::vector<ModuleSpec> children{
      linear("q_proj", s.hidden, q, family.has_qkv_bias), linear("k_proj", s.hidden, kv, family.has_qkv_bias),
      linear("v_proj", s.hidden, kv, family.has_qkv_bias), linear("o_proj", q, s.hidden, family.has_out_bias)};
  if (family.has_qk_norm) {
    children.push_back(rms_norm("q_norm", family.name + "RMSNorm", s.head_dim, s.eps));
    children.push_back(rms_norm("k_norm", family.name + "RMSNorm", s.head_dim, s.eps));
  }
  return container("self_attn", family.name + "Attention", std::move(children));
}

ModuleSpec layer_tree(std::string index, const LlamaSizes& s, const LlamaFamily& family, const std::string& act_class) {
  ModuleSpec mlp = container(
      "mlp", family.name + "MLP",
      {linear("gate_proj", s.hidden, s.intermediate, family.has_mlp_bias),
       linear("up_proj", s.hidden, s.intermediate, family.has_mlp_bias),
       linear("down_proj", s.intermediate, s.hidden, family.has_mlp_bias), plain_module("act_fn", act_class)});
  return container(
      std::move(index), family.name + "DecoderLayer",
      {attention_tree(s, family), std::move(mlp), rms_norm("input_layernorm", family.name + "RMSNorm", s.hidden, s.eps),
       rms_norm("post_attention_layernorm", family.name + "RMSNorm", s.hidden, s.eps)});
}

ModuleSpec model_tree(const ConfigReader& config, const LlamaSizes& s, const LlamaFamily& family, int64_t rotary_dim,
                      const std::string& act_class) {
  std::vector<ModuleSpec> layers;
  for (int64_t i = 0; i < s.layers; ++i) layers.push_back(layer_tree(std::to_string(i), s, family, act_class));
  ModuleSpec model = container(
      "model", family.name + "Model",
      {embedding("embed_tokens", s.vocab, s.hidden, config.find_integer("pad_token_id", -s.vocab, s.vocab - 1)),
       container("layers", "ModuleList", std::move(layers)), rms_norm("norm", family.name + "RMSNorm", s.hidden, s.eps),
       plain_module("rotary_emb", family.name + "RotaryEmbedding",
                    {{"inv_freq", rotary_dim / 2}, {"original_inv_freq", rotary_dim / 2}})});
  return container("", family.name + "ForCausalLM", {std::move(model), linear("lm_head", s.hidden, s.vocab, false)});
}

LayerSpec layer_spec(const LlamaSizes& s, const LlamaFamily& family, const ActivationName& act, int64_t index) {
  LayerSpec layer;
  layer.attention_norm = {.module = "input_layernorm", .eps = s.eps};
  layer.mlp_norm = {.module = "post_attention_layernorm", .eps = s.eps};
  layer.attention = {
      .q = "self_attn.q_proj", .k = "self_attn.k_proj", .v = "self_attn.v_proj", .out = "self_attn.o_proj"};
  if (family.has_qk_norm) {
    layer.attention.q_norm = {.module = "self_attn.q_norm", .eps = s.eps};
    layer.attention.k_norm = {.module = "self_attn.k_norm", .eps = s.eps};
  }
  layer.attention.heads = s.heads;
  layer.attention.kv_heads = s.kv_heads;
  layer.attention.head_dim = s.head_dim;
  layer.attention.rope = 0;
  layer.attention.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(s.head_dim)));
  if (!family.windows.empty()) layer.attention.window = family.windows[static_cast<size_t>(index)];
  layer.mlp = {.gate = "mlp.gate_proj",
               .up = "mlp.up_proj",
               .down = "mlp.down_proj",
               .activation = act.activation,
               .intermediate_size = s.intermediate};
  return layer;
}

}  // namespace

ModelSpec build_llama_family(const ConfigReader& config, const LlamaFamily& family) {
  const LlamaSizes s = read_llama_sizes(config, family);
  const ActivationName& act = read_activation(config, "hidden_act", "silu");
  ModelSpec spec;
  spec.architecture = family.name + "ForCausalLM";
  spec.max_position_embeddings =
      config.integer_or("max_position_embeddings", family.default_max_positions, 1, kMaxPositions);
  spec.ropes.push_back(read_rope(config, s.head_dim, spec.max_position_embeddings));
  if (spec.ropes[0].kind == nn::RopeKind::dynamic)  // made to run past the trained length
    spec.max_position_embeddings =
        static_cast<int64_t>(static_cast<double>(spec.max_position_embeddings) * std::max(1.0, spec.ropes[0].factor));
  spec.root = model_tree(config, s, family, spec.ropes[0].rotary_dim, std::string(act.class_name));
  spec.base_prefix = "model.";
  spec.embed = "model.embed_tokens";
  spec.layers_prefix = "model.layers.";
  for (int64_t i = 0; i < s.layers; ++i) spec.layers.push_back(layer_spec(s, family, act, i));
  spec.final_norm = {.module = "model.norm", .eps = s.eps};
  spec.head = "lm_head";
  if (config.flag_or("tie_word_embeddings", false))
    spec.tied.emplace_back("lm_head.weight", "model.embed_tokens.weight");
  spec.ignored_suffixes = {".rotary_emb.inv_freq"};
  spec.hidden_size = s.hidden;
  spec.vocab_size = s.vocab;
  return spec;
}

std::vector<int64_t> read_qwen_windows(const ConfigReader& config) {
  if (!config.flag_or("use_sliding_window", false)) return {};
  const int64_t layers = config.integer("num_hidden_layers", 1, kMaxLayers);
  const int64_t window = config.integer_or("sliding_window", 4096, 1, kMaxPositions);
  const int64_t first = config.integer_or("max_window_layers", 28, 0, kMaxLayers);
  std::vector<int64_t> windows(static_cast<size_t>(layers), 0);
  const auto types = config.json().find("layer_types");
  const bool has_types = types != config.json().end() && types->is_array();
  if (has_types && static_cast<int64_t>(types->size()) != layers)
    config.refuse("layer_types", fmt::format("{} entries", types->size()), fmt::format("{} entries", layers));
  for (int64_t i = 0; i < layers; ++i) {
    const bool is_sliding = has_types ? (*types)[static_cast<size_t>(i)] == "sliding_attention" : i >= first;
    if (is_sliding) windows[static_cast<size_t>(i)] = window;
  }
  return windows;
}

}  // namespace nibble::models
