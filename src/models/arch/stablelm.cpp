// StableLmForCausalLM: a gated MLP between LayerNorms, partial rotation, a norm for each head in the 12B.
#include "models/activations.h"
#include "models/arch/architectures.h"
#include "models/rope_config.h"
#include "models/sizes.h"

namespace nibble::models {
namespace {

ModuleSpec head_norms(std::string name, int64_t heads, int64_t head_dim, double eps) {
  std::vector<ModuleSpec> norms;
  for (int64_t i = 0; i < heads; ++i) norms.push_back(layer_norm(std::to_string(i), head_dim, eps, Affine::weight));
  return container(std::move(name), "StableLmLayerNormPerHead", {container("norms", "ModuleList", std::move(norms))});
}

}  // namespace

ModelSpec stablelm(const ConfigReader& config) {
  const Sizes s = read_sizes(config);
  const int64_t width = config.integer("intermediate_size", 1, kMaxWidth);
  const int64_t kv_heads = read_kv_heads(config, "num_key_value_heads", s.heads, 32), kv = kv_heads * s.head_dim;
  const double eps = config.number_or("layer_norm_eps", 1e-5, 0, 1);
  const bool has_bias = config.flag_or("use_qkv_bias", false), has_qk_norm = config.flag_or("qk_layernorm", false);
  const ActivationName& act = read_activation(config, "hidden_act", "silu");
  config.accept_only("head_dim", s.head_dim);

  ModelSpec spec = start_spec(config, "StableLmForCausalLM", s, "model", "layers", "embed_tokens", false);
  spec.max_position_embeddings = config.integer_or("max_position_embeddings", 4096, 1, kMaxPositions);
  spec.ropes.push_back(read_rope(config, s.head_dim, spec.max_position_embeddings, {.share = 0.25}));
  spec.final_norm = layer_norm_of("model.norm", eps);
  spec.ignored_suffixes = {".rotary_emb.inv_freq"};

  LayerSpec layer;
  layer.attention_norm = layer_norm_of("input_layernorm", eps);
  layer.is_parallel = config.flag_or("use_parallel_residual", false);
  if (!layer.is_parallel) layer.mlp_norm = layer_norm_of("post_attention_layernorm", eps);
  layer.attention = attention_of(s, "self_attn.", "o_proj");
  layer.attention.kv_heads = kv_heads;
  layer.attention.rope = 0;
  std::vector<ModuleSpec> attention{linear("q_proj", s.hidden, s.hidden, has_bias),
                                    linear("k_proj", s.hidden, kv, has_bias), linear("v_proj", s.hidden, kv, has_bias),
                                    linear("o_proj", s.hidden, s.hidden, false)};
  if (has_qk_norm) {
    layer.attention.q_norm = layer_norm_of("self_attn.q_layernorm.norms", eps);
    layer.attention.q_norm.count = s.heads;
    layer.attention.k_norm = layer_norm_of("self_attn.k_layernorm.norms", eps);
    layer.attention.k_norm.count = kv_heads;
    attention.push_back(head_norms("q_layernorm", s.heads, s.head_dim, eps));
    attention.push_back(head_norms("k_layernorm", kv_heads, s.head_dim, eps));
  }
  layer.mlp = {.gate = "mlp.gate_proj", .up = "mlp.up_proj", .down = "mlp.down_proj"};
  layer.mlp.activation = act.activation;
  layer.mlp.intermediate_size = width;
  spec.layers.assign(static_cast<size_t>(s.layers), layer);

  std::vector<ModuleSpec> parts{
      container("self_attn", "StableLmAttention", std::move(attention)),
      container("mlp", "StableLmMLP",
                {linear("gate_proj", s.hidden, width, false), linear("up_proj", s.hidden, width, false),
                 linear("down_proj", width, s.hidden, false), plain_module("act_fn", act.class_name)}),
      layer_norm("input_layernorm", s.hidden, eps)};
  if (!layer.is_parallel) parts.push_back(layer_norm("post_attention_layernorm", s.hidden, eps));
  parts.push_back(dropout("dropout", config.number_or("hidden_dropout", 0, 0, 1)));
  spec.root = container(
      "", spec.architecture,
      {container("model", "StableLmModel",
                 {embedding("embed_tokens", s.vocab, s.hidden, read_pad(config, s)),
                  module_list("layers", "StableLmDecoderLayer", s.layers, parts), layer_norm("norm", s.hidden, eps),
                  rotary_embedding("StableLmRotaryEmbedding", spec.ropes[0])}),
       linear("lm_head", s.hidden, s.vocab, false)});
  return spec;
}

}  // namespace nibble::models
