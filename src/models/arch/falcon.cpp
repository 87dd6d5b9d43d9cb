// FalconForCausalLM: falcon-rw (ALiBi, serial blocks), 7B (one kv head, parallel) and 40B (kv groups, two norms).
#include "models/activations.h"
#include "models/alibi.h"
#include "models/arch/architectures.h"
#include "models/rope_config.h"
#include "models/sizes.h"

namespace nibble::models {
namespace {

ModuleSpec falcon_linear(std::string name, int64_t in_features, int64_t out_features, bool has_bias) {
  ModuleSpec module = linear(std::move(name), in_features, out_features, has_bias);
  module.class_name = "FalconLinear";
  return module;
}

}  // namespace

ModelSpec falcon(const ConfigReader& config) {
  const Sizes s = read_sizes(config, {.hidden = config.first_of({"n_embed", "hidden_size"})});
  const bool is_new = config.flag_or("new_decoder_architecture", false), has_bias = config.flag_or("bias", false);
  const bool is_multi_query = !is_new && config.flag_or("multi_query", true);
  const bool is_parallel = config.flag_or("parallel_attn", true), has_alibi = config.flag_or("alibi", false);
  const bool has_two_norms = is_new && config.integer_or("num_ln_in_parallel_attn", 2, 1, 2) == 2;
  if (is_new) config.accept_only("parallel_attn", true);
  if (!is_new) config.accept_only("num_ln_in_parallel_attn", 1);
  const int64_t kv_heads = is_multi_query ? 1 : read_kv_heads(config, "num_kv_heads", s.heads, s.heads);
  if (!is_new && !is_multi_query) config.accept_only("num_kv_heads", s.heads);
  const int64_t width = config.integer_or("ffn_hidden_size", 4 * s.hidden, 1, kMaxWidth);
  const double eps = config.number_or("layer_norm_epsilon", 1e-5, 0, 1);
  const ActivationName& act = read_activation(config, "activation", "gelu");

  ModelSpec spec = start_spec(config, "FalconForCausalLM", s, "transformer", "h", "word_embeddings", true);
  spec.max_position_embeddings = config.integer_or("max_position_embeddings", 2048, 1, kMaxPositions);
  const nn::RopeSpec rope = read_rope(config, s.head_dim, spec.max_position_embeddings, {.is_whole = true});
  spec.final_norm = layer_norm_of("transformer.ln_f", eps);
  spec.ignored_suffixes = {".inv_freq"};

  LayerSpec layer;
  layer.attention_norm = layer_norm_of(has_two_norms ? "ln_attn" : "input_layernorm", eps);
  layer.is_parallel = is_parallel;
  if (has_two_norms) layer.mlp_norm = layer_norm_of("ln_mlp", eps);
  if (!is_parallel) layer.mlp_norm = layer_norm_of("post_attention_layernorm", eps);
  layer.attention = attention_of(s);
  layer.attention.kv_heads = layer.attention.qkv_groups = kv_heads;
  layer.attention.qkv = "self_attention.query_key_value";
  layer.attention.out = "self_attention.dense";
  if (has_alibi) {  // computed in bf16, whatever the model's type, and scaled as the scores are
    spec.alibi = {alibi_slopes(s.heads, DType::bf16), DType::bf16, layer.attention.scale};
    layer.attention.has_alibi = true;
    spec.max_position_embeddings = kMaxPositions;
  } else {
    spec.ropes.push_back(rope);
    layer.attention.rope = 0;
  }
  layer.mlp = mlp_of("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", act.activation, width);
  spec.layers.assign(static_cast<size_t>(s.layers), layer);

  std::vector<ModuleSpec> parts{
      container("self_attention", "FalconAttention",
                {falcon_linear("query_key_value", s.hidden, s.hidden + 2 * kv_heads * s.head_dim, has_bias),
                 falcon_linear("dense", s.hidden, s.hidden, has_bias),
                 dropout("attention_dropout", config.number_or("attention_dropout", 0, 0, 1))}),
      container("mlp", "FalconMLP",
                {falcon_linear("dense_h_to_4h", s.hidden, width, has_bias), plain_module("act", act.class_name),
                 falcon_linear("dense_4h_to_h", width, s.hidden, has_bias)})};
  if (!is_parallel) parts.push_back(layer_norm(layer.mlp_norm.module, s.hidden, eps));
  parts.push_back(layer_norm(layer.attention_norm.module, s.hidden, eps));
  if (is_parallel && layer.mlp_norm) parts.push_back(layer_norm(layer.mlp_norm.module, s.hidden, eps));
  spec.root =
      container("", spec.architecture,
                {container("transformer", "FalconModel",
                           {embedding("word_embeddings", s.vocab, s.hidden, {}),
                            module_list("h", "FalconDecoderLayer", s.layers, parts), layer_norm("ln_f", s.hidden, eps),
                            rotary_embedding("FalconRotaryEmbedding", rope)}),
                 linear("lm_head", s.hidden, s.vocab, false)});
  return spec;
}

}  // namespace nibble::models
