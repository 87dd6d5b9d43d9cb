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
  const auto kv_heads = config.json().find("num_key_value_heads");
  const bool is_null = kv_heads != config.json().end() && kv_heads->is_null();
  s.kv_heads = is_null
                   ? s.heads
                   : config.integer_or("num_key_value_heads", family.default_kv_heads.value_or(s.heads), 1, kMaxHeads);
  if (s.heads % s.kv_heads != 0)
    config.refuse("num_key_value_heads", s.kv_heads, fmt::format("a divisor of num_attention_heads ({})", s.heads));
  const auto head_dim = config.find_integer("head_dim", 1, kMaxHeads);
  if (!head_dim && !family.default_head_dim && s.hidden % s.heads != 0)
    config.refuse("num_attention_heads", s.heads, fmt::format("a divisor of hidden_size ({})", s.hidden));
  s.head_dim = head_dim ? *head_dim : family.default_head_dim.value_or(s.hidden / s.heads);
  if (s.heads * s.head_dim > kMaxWidth)
    config.refuse("head_dim", s.head_dim, fmt::format("at most {} for {} heads", kMaxWidth / s.heads, s.heads));
  s.eps = config.number_or("rms_norm_eps", family.default_eps, 0, 1);
  return s;
}

ModuleSpec attention_tree(const LlamaSizes& s, const LlamaFamily& family) {
  const int64_t q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
  std::vector<ModuleSpec> children{
      linear("q_proj", s.hidden, q, family.has_qkv_bias), linear("k_proj", s.hidden, kv, family.has_qkv_bias),
      linear("v_proj", s.hidden, kv, family.has_qkv_bias), linear("o_proj", q, s.hidden, family.has_out_bias)};
  if (family.qk_norm != QkNorm::none) {
    const bool is_wide = family.qk_norm == QkNorm::width;
    children.push_back(rms_norm("q_norm", family.name + "RMSNorm", is_wide ? q : s.head_dim, s.eps));
    children.push_back(rms_norm("k_norm", family.name + "RMSNorm", is_wide ? kv : s.head_dim, s.eps));
  }
  return container("self_attn", family.name + "Attention", std::move(children));
}

/// The norms of a layer in the order of its tree.
std::vector<std::string> norm_names(NormPlace place) {
  switch (place) {
    case NormPlace::before:
      return {"input_layernorm", "post_attention_layernorm"};
    case NormPlace::after:
      return {"post_attention_layernorm", "post_feedforward_layernorm"};
    case NormPlace::both:
      return {"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"};
  }
  return {};
}

ModuleSpec layer_tree(std::string index, const LlamaSizes& s, const LlamaFamily& family, const std::string& act_class) {
  ModuleSpec mlp = container(
      "mlp", family.name + "MLP",
      {linear("gate_proj", s.hidden, s.intermediate, family.has_mlp_bias),
       linear("up_proj", s.hidden, s.intermediate, family.has_mlp_bias),
       linear("down_proj", s.intermediate, s.hidden, family.has_mlp_bias), plain_module("act_fn", act_class)});
  std::vector<ModuleSpec> children{attention_tree(s, family), std::move(mlp)};
  for (const std::string& name : norm_names(family.norms))
    children.push_back(rms_norm(name, family.name + "RMSNorm", s.hidden, s.eps));
  return container(std::move(index), family.name + "DecoderLayer", std::move(children));
}

LayerSpec layer_spec(const LlamaSizes& s, const LlamaFamily& family, const ActivationName& act, int64_t index) {
  const auto norm = [&](const std::string& module) {
    return NormSpec{.module = module, .eps = s.eps, .weight_offset = family.norm_offset};
  };
  LayerSpec layer;
  const std::vector<std::string> names = norm_names(family.norms);
  if (family.norms == NormPlace::after) {
    layer.attention_out_norm = norm(names[0]);
    layer.mlp_out_norm = norm(names[1]);
  } else {
    const bool has_both = family.norms == NormPlace::both;
    layer.attention_norm = norm(names[0]);
    layer.mlp_norm = norm(names[has_both ? 2 : 1]);
    if (has_both) layer.attention_out_norm = norm(names[1]);
    if (has_both) layer.mlp_out_norm = norm(names[3]);
  }
  layer.attention = {
      .q = "self_attn.q_proj", .k = "self_attn.k_proj", .v = "self_attn.v_proj", .out = "self_attn.o_proj"};
  if (family.qk_norm != QkNorm::none) {
    layer.attention.q_norm = norm("self_attn.q_norm");
    layer.attention.k_norm = norm("self_attn.k_norm");
  }
  layer.attention.heads = s.heads;
  layer.attention.kv_heads = s.kv_heads;
  layer.attention.head_dim = s.head_dim;
  layer.attention.rope = family.layer_ropes.empty() ? 0 : family.layer_ropes[static_cast<size_t>(index)];
  const double scalar = family.query_scalar.value_or(static_cast<double>(s.head_dim));
  layer.attention.scale = static_cast<float>(1 / std::sqrt(scalar));
  layer.attention.softcap = static_cast<float>(family.softcap);
  if (!family.windows.empty()) layer.attention.window = family.windows[static_cast<size_t>(index)];
  layer.mlp = {.gate = "mlp.gate_proj",
               .up = "mlp.up_proj",
               .down = "mlp.down_proj",
               .activation = act.activation,
               .intermediate_size = s.intermediate};
  return layer;
}

ModuleSpec embedding_tree(const ConfigReader& config, const LlamaSizes& s, const LlamaFamily& family) {
  auto pad = config.find_integer("pad_token_id", -s.vocab, s.vocab - 1);
  if (!config.json().contains("pad_token_id")) pad = family.default_pad;
  ModuleSpec tree = embedding("embed_tokens", s.vocab, s.hidden, pad);
  if (family.has_scaled_embedding) {
    tree.class_name = family.name + "TextScaledWordEmbedding";
    tree.buffers = {{"embed_scale", 1, std::nullopt}};
  }
  return tree;
}

ModuleSpec model_tree(const ConfigReader& config, const LlamaSizes& s, const LlamaFamily& family,
                      const std::vector<nn::RopeSpec>& ropes, std::vector<ModuleSpec> layers) {
  std::vector<BufferSpec> angles;
  for (const nn::RopeSpec& rope : ropes)
    for (const char* name : {"inv_freq", "original_inv_freq"}) angles.push_back({name, rope.rotary_dim / 2});
  ModuleSpec model = container("model", family.name + std::string(family.model_class),
                               {embedding_tree(config, s, family), container("layers", "ModuleList", std::move(layers)),
                                rms_norm("norm", family.name + "RMSNorm", s.hidden, s.eps),
                                plain_module("rotary_emb", family.name + "RotaryEmbedding", std::move(angles))});
  return container("", family.name + "ForCausalLM", {std::move(model), linear("lm_head", s.hidden, s.vocab, false)});
}

}  // namespace

ModelSpec build_llama_family(const ConfigReader& config, const LlamaFamily& family) {
  const LlamaSizes s = read_llama_sizes(config, family);
  const ActivationName& act = read_activation(config, family.activation_key, family.default_activation);
  ModelSpec spec;
  spec.architecture = family.name + "ForCausalLM";
  spec.max_position_embeddings =
      config.integer_or("max_position_embeddings", family.default_max_positions, 1, kMaxPositions);
  spec.ropes = family.ropes;
  if (spec.ropes.empty())
    spec.ropes.push_back(
        read_rope(config, s.head_dim, spec.max_position_embeddings,
                  {.theta = family.default_theta, .original_positions = family.default_original_positions}));
  if (spec.ropes[0].kind == nn::RopeKind::dynamic)  // made to run past the trained length
    spec.max_position_embeddings =
        static_cast<int64_t>(static_cast<double>(spec.max_position_embeddings) * std::max(1.0, spec.ropes[0].factor));
  std::vector<ModuleSpec> layers;
  for (int64_t i = 0; i < s.layers; ++i) {
    layers.push_back(layer_tree(std::to_string(i), s, family, std::string(act.class_name)));
    spec.layers.push_back(layer_spec(s, family, act, i));
    if (family.change_layer) family.change_layer(i, spec.layers.back(), layers.back());
  }
  spec.root = model_tree(config, s, family, spec.ropes, std::move(layers));
  spec.base_prefix = "model.";
  spec.embed = "model.embed_tokens";
  if (family.has_scaled_embedding) spec.embed_scale = static_cast<float>(std::sqrt(static_cast<double>(s.hidden)));
  spec.layers_prefix = "model.layers.";
  spec.final_norm = {.module = "model.norm", .eps = s.eps, .weight_offset = family.norm_offset};
  spec.head = "lm_head";
  spec.logit_softcap = static_cast<float>(family.logit_softcap);
  if (config.flag_or("tie_word_embeddings", family.is_tied_by_default))
    spec.tied.emplace_back("lm_head.weight", "model.embed_tokens.weight");
  spec.ignored_suffixes = {".rotary_emb.inv_freq"};
  spec.hidden_size = s.hidden;
  spec.vocab_size = s.vocab;
  return spec;
}

std::vector<bool> read_sliding_layers(const ConfigReader& config, const std::function<bool(int64_t)>& is_sliding) {
  std::vector<bool> result(static_cast<size_t>(config.integer("num_hidden_layers", 1, kMaxLayers)));
  const auto types = config.json().find("layer_types");
  const bool has_types = types != config.json().end() && !types->is_null();
  if (has_types && (!types->is_array() || types->size() != result.size()))
    config.refuse("layer_types", types->is_array() ? fmt::format("{} entries", types->size()) : types->type_name(),
                  fmt::format("a list of {} entries", result.size()));
  for (size_t i = 0; i < result.size(); ++i) {
    if (has_types && (*types)[i] != "sliding_attention" && (*types)[i] != "full_attention")
      config.refuse("layer_types", short_text((*types)[i]), "\"sliding_attention\" or \"full_attention\"");
    result[i] = has_types ? (*types)[i] == "sliding_attention" : is_sliding(static_cast<int64_t>(i));
  }
  return result;
}

std::vector<int64_t> read_windows(const ConfigReader& config, const std::vector<bool>& sliding, int64_t fallback) {
  std::vector<int64_t> windows(sliding.size(), 0);
  const auto window = config.find_integer("sliding_window", 1, kMaxPositions);
  const bool is_null = !window && config.json().contains("sliding_window");
  for (size_t i = 0; i < sliding.size(); ++i) {
    if (sliding[i] && is_null) config.refuse("sliding_window", "null", "a whole number, as layer_types uses it");
    if (sliding[i]) windows[i] = window.value_or(fallback);
  }
  return windows;
}

double read_softcap(const ConfigReader& config, std::string_view key, double fallback) {
  const auto found = config.find_number(key, 1e-3, 1e9);
  return found ? *found : config.json().contains(key) ? 0 : fallback;
}

std::vector<int64_t> read_qwen_windows(const ConfigReader& config) {
  if (!config.flag_or("use_sliding_window", false)) return {};
  const int64_t first = config.integer_or("max_window_layers", 28, 0, kMaxLayers);
  return read_windows(config, read_sliding_layers(config, [&](int64_t i) { return i >= first; }), 4096);
}

}  // namespace nibble::models
