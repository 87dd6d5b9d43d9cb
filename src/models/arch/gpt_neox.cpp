// GPTNeoXForCausalLM (GPT-NeoX-20B, Pythia): one projection to q, k and v, partial rotation, parallel blocks.
#include "models/activations.h"
#include "models/arch/architectures.h"
#include "models/rope_config.h"
#include "models/sizes.h"

namespace nibble::models {

ModelSpec gpt_neox(const ConfigReader& config) {
  const Sizes s = read_sizes(config);
  const int64_t width = config.integer("intermediate_size", 1, kMaxWidth);
  const double eps = config.number_or("layer_norm_eps", 1e-5, 0, 1), p = config.number_or("hidden_dropout", 0, 0, 1);
  const bool has_bias = config.flag_or("attention_bias", true);
  const ActivationName& act = read_activation(config, "hidden_act", "gelu");

  ModelSpec spec = start_spec(config, "GPTNeoXForCausalLM", s, "gpt_neox", "layers", "embed_in", false);
  spec.max_position_embeddings = config.integer_or("max_position_embeddings", 2048, 1, kMaxPositions);
  spec.ropes.push_back(
      read_rope(config, s.head_dim, spec.max_position_embeddings,
                {.theta = 10000, .share = 0.25, .theta_key = "rotary_emb_base", .share_key = "rotary_pct"}));
  spec.final_norm = layer_norm_of("gpt_neox.final_layer_norm", eps);
  spec.aliases = {{"lm_head", "embed_out"}};
  spec.ignored_suffixes = {".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"};

  LayerSpec layer;
  layer.attention_norm = layer_norm_of("input_layernorm", eps);
  layer.mlp_norm = layer_norm_of("post_attention_layernorm", eps);
  layer.is_parallel = config.flag_or("use_parallel_residual", true);
  layer.attention = attention_of(s);
  layer.attention.qkv = "attention.query_key_value";
  layer.attention.qkv_groups = s.heads;
  layer.attention.out = "attention.dense";
  layer.attention.rope = 0;
  layer.mlp = {.gate = "", .up = "mlp.dense_h_to_4h", .down = "mlp.dense_4h_to_h"};
  layer.mlp.activation = act.activation;
  layer.mlp.intermediate_size = width;
  spec.layers.assign(static_cast<size_t>(s.layers), layer);

  std::vector<ModuleSpec> layers;
  for (int64_t i = 0; i < s.layers; ++i)
    layers.push_back(
        container(std::to_string(i), "GPTNeoXLayer",
                  {layer_norm("input_layernorm", s.hidden, eps), layer_norm("post_attention_layernorm", s.hidden, eps),
                   dropout("post_attention_dropout", p), dropout("post_mlp_dropout", p),
                   container("attention", "GPTNeoXAttention",
                             {linear("query_key_value", s.hidden, 3 * s.hidden, has_bias),
                              linear("dense", s.hidden, s.hidden, has_bias)}),
                   container("mlp", "GPTNeoXMLP",
                             {linear("dense_h_to_4h", s.hidden, width, true),
                              linear("dense_4h_to_h", width, s.hidden, true), plain_module("act", act.class_name)})}));
  const int64_t angles = spec.ropes[0].rotary_dim / 2;
  spec.root = container(
      "", spec.architecture,
      {container("gpt_neox", "GPTNeoXModel",
                 {embedding("embed_in", s.vocab, s.hidden, {}), dropout("emb_dropout", p),
                  container("layers", "ModuleList", std::move(layers)), layer_norm("final_layer_norm", s.hidden, eps),
                  plain_module("rotary_emb", "GPTNeoXRotaryEmbedding",
                               {{"inv_freq", angles}, {"original_inv_freq", angles}})}),
       linear("lm_head", s.hidden, s.vocab, false)});
  return spec;
}

}  // namespace nibble::models
