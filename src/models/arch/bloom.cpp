// BloomForCausalLM: ALiBi, a norm on the embedding, one projection to q, k and v.
#include "models/alibi.h"
#include "models/arch/architectures.h"
#include "models/sizes.h"

namespace nibble::models {

ModelSpec bloom(const ConfigReader& config) {
  const Sizes s = read_sizes(config, {.hidden = config.first_of({"n_embed", "hidden_size"}),
                                      .layers = config.first_of({"num_hidden_layers", "n_layer"}),
                                      .heads = config.first_of({"num_attention_heads", "n_head"})});
  const double eps = config.number_or("layer_norm_epsilon", 1e-5, 0, 1);
  const double p = config.number_or("attention_dropout", 0, 0, 1);

  ModelSpec spec = start_spec(config, "BloomForCausalLM", s, "transformer", "h", "word_embeddings", true);
  spec.max_position_embeddings = kMaxPositions;  // ALiBi has no last position
  spec.alibi.slopes = alibi_slopes(s.heads);
  spec.embed_norm = layer_norm_of("transformer.word_embeddings_layernorm", eps);
  spec.final_norm = layer_norm_of("transformer.ln_f", eps);

  LayerSpec layer;
  layer.attention_norm = layer_norm_of("input_layernorm", eps);
  layer.mlp_norm = layer_norm_of("post_attention_layernorm", eps);
  layer.keeps_normed = config.flag_or("apply_residual_connection_post_layernorm", false);
  layer.attention = attention_of(s);
  layer.attention.qkv = "self_attention.query_key_value";
  layer.attention.qkv_groups = s.heads;
  layer.attention.out = "self_attention.dense";
  layer.attention.has_alibi = true;
  layer.mlp = {.gate = "", .up = "mlp.dense_h_to_4h", .down = "mlp.dense_4h_to_h"};
  layer.mlp.activation = kernels::Activation::gelu_tanh;
  layer.mlp.intermediate_size = 4 * s.hidden;
  spec.layers.assign(static_cast<size_t>(s.layers), layer);

  std::vector<ModuleSpec> layers;
  for (int64_t i = 0; i < s.layers; ++i)
    layers.push_back(container(
        std::to_string(i), "BloomBlock",
        {layer_norm("input_layernorm", s.hidden, eps),
         container("self_attention", "BloomAttention",
                   {linear("query_key_value", s.hidden, 3 * s.hidden, true), linear("dense", s.hidden, s.hidden, true),
                    dropout("attention_dropout", p)}),
         layer_norm("post_attention_layernorm", s.hidden, eps),
         container("mlp", "BloomMLP",
                   {linear("dense_h_to_4h", s.hidden, 4 * s.hidden, true), plain_module("gelu_impl", "BloomGelu"),
                    linear("dense_4h_to_h", 4 * s.hidden, s.hidden, true)})}));
  spec.root =
      container("", spec.architecture,
                {container("transformer", "BloomModel",
                           {embedding("word_embeddings", s.vocab, s.hidden, {}),
                            layer_norm("word_embeddings_layernorm", s.hidden, eps),
                            container("h", "ModuleList", std::move(layers)), layer_norm("ln_f", s.hidden, eps)}),
                 linear("lm_head", s.hidden, s.vocab, false)});
  return spec;
}

}  // namespace nibble::models
