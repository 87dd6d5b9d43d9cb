// Starcoder2ForCausalLM: grouped heads, biases, LayerNorms, a plain MLP and a window in every layer.
#include "models/activations.h"
#include "models/arch/architectures.h"
#include "models/rope_config.h"
#include "models/sizes.h"

namespace nibble::models {

ModelSpec starcoder2(const ConfigReader& config) {
  Sizes s = read_sizes(config);
  s.head_dim = config.integer_or("head_dim", s.head_dim, 1, kMaxWidth / s.heads);
  const int64_t width = config.integer("intermediate_size", 1, kMaxWidth);
  const int64_t kv_heads = read_kv_heads(config, "num_key_value_heads", s.heads, 2);
  const int64_t q = s.heads * s.head_dim, kv = kv_heads * s.head_dim;
  const double eps = config.number_or("norm_epsilon", 1e-5, 0, 1);
  const bool has_bias = config.flag_or("use_bias", true);
  const ActivationName& act = read_activation(config, "hidden_act", "gelu_pytorch_tanh");
  config.accept_only("norm_type", "layer_norm");
  config.accept_only("mlp_type", "default");

  ModelSpec spec = start_spec(config, "Starcoder2ForCausalLM", s, "model", "layers", "embed_tokens", true);
  spec.max_position_embeddings = config.integer_or("max_position_embeddings", 4096, 1, kMaxPositions);
  spec.ropes.push_back(read_rope(config, s.head_dim, spec.max_position_embeddings, {.is_whole = true}));
  spec.final_norm = layer_norm_of("model.norm", eps);
  spec.ignored_suffixes = {".rotary_emb.inv_freq"};

  LayerSpec layer;
  layer.attention_norm = layer_norm_of("input_layernorm", eps);
  layer.mlp_norm = layer_norm_of("post_attention_layernorm", eps);
  layer.attention = attention_of(s, "self_attn.", "o_proj");
  layer.attention.kv_heads = kv_heads;
  layer.attention.window = config.find_integer("sliding_window", 1, kMaxPositions).value_or(0);
  layer.attention.rope = 0;
  layer.mlp = mlp_of("mlp.c_fc", "mlp.c_proj", act.activation, width);
  spec.layers.assign(static_cast<size_t>(s.layers), layer);

  const std::vector<ModuleSpec> parts{
      container("self_attn", "Starcoder2Attention",
                {linear("q_proj", s.hidden, q, has_bias), linear("k_proj", s.hidden, kv, has_bias),
                 linear("v_proj", s.hidden, kv, has_bias), linear("o_proj", q, s.hidden, has_bias)}),
      container("mlp", "Starcoder2MLP",
                {linear("c_fc", s.hidden, width, has_bias), linear("c_proj", width, s.hidden, has_bias),
                 plain_module("act", act.class_name)}),
      layer_norm("input_layernorm", s.hidden, eps), layer_norm("post_attention_layernorm", s.hidden, eps)};
  spec.root = container(
      "", spec.architecture,
      {container("model", "Starcoder2Model",
                 {embedding("embed_tokens", s.vocab, s.hidden, read_pad(config, s)),
                  module_list("layers", "Starcoder2DecoderLayer", s.layers, parts), layer_norm("norm", s.hidden, eps),
                  rotary_embedding("Starcoder2RotaryEmbedding", spec.ropes[0])}),
       linear("lm_head", s.hidden, s.vocab, false)});
  return spec;
}

}  // namespace nibble::models
