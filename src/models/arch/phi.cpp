// PhiForCausalLM (Phi-1, 1.5 and 2): parallel blocks behind one norm, partial rotation, a head with bias.
#include "models/activations.h"
#include "models/arch/architectures.h"
#include "models/rope_config.h"
#include "models/sizes.h"

namespace nibble::models {

ModelSpec phi(const ConfigReader& config) {
  const Sizes s = read_sizes(config);
  const int64_t width = config.integer("intermediate_size", 1, kMaxWidth);
  const int64_t kv_heads = read_kv_heads(config, "num_key_value_heads", s.heads, s.heads), kv = kv_heads * s.head_dim;
  const double eps = config.number_or("layer_norm_eps", 1e-5, 0, 1);
  const double embd = config.number_or("embd_pdrop", 0, 0, 1), resid = config.number_or("resid_pdrop", 0, 0, 1);
  const bool has_qk_norm = config.flag_or("qk_layernorm", false);
  const ActivationName& act = read_activation(config, "hidden_act", "gelu_new");
  config.accept_only("head_dim", s.head_dim);

  ModelSpec spec = start_spec(config, "PhiForCausalLM", s, "model", "layers", "embed_tokens", false);
  spec.max_position_embeddings = config.integer_or("max_position_embeddings", 2048, 1, kMaxPositions);
  spec.ropes.push_back(read_rope(config, s.head_dim, spec.max_position_embeddings, {.share = 0.5}));
  spec.final_norm = layer_norm_of("model.final_layernorm", eps);
  spec.ignored_suffixes = {".rotary_emb.inv_freq"};

  LayerSpec layer;
  layer.attention_norm = layer_norm_of("input_layernorm", eps);
  layer.is_parallel = true;
  layer.attention = attention_of(s, "self_attn.", "dense");
  layer.attention.kv_heads = kv_heads;
  if (has_qk_norm) {
    layer.attention.q_norm = layer_norm_of("self_attn.q_layernorm", eps);
    layer.attention.k_norm = layer_norm_of("self_attn.k_layernorm", eps);
  }
  layer.attention.rope = 0;
  layer.mlp = mlp_of("mlp.fc1", "mlp.fc2", act.activation, width);
  spec.layers.assign(static_cast<size_t>(s.layers), layer);

  std::vector<ModuleSpec> attention{linear("q_proj", s.hidden, s.hidden, true), linear("k_proj", s.hidden, kv, true),
                                    linear("v_proj", s.hidden, kv, true), linear("dense", s.hidden, s.hidden, true)};
  if (has_qk_norm) {
    attention.push_back(layer_norm("q_layernorm", s.head_dim, eps));
    attention.push_back(layer_norm("k_layernorm", s.head_dim, eps));
  }
  const std::vector<ModuleSpec> parts{
      container("self_attn", "PhiAttention", attention),
      container("mlp", "PhiMLP",
                {plain_module("activation_fn", act.class_name), linear("fc1", s.hidden, width, true),
                 linear("fc2", width, s.hidden, true)}),
      layer_norm("input_layernorm", s.hidden, eps), dropout("resid_dropout", resid)};
  spec.root = container("", spec.architecture,
                        {container("model", "PhiModel",
                                   {embedding("embed_tokens", s.vocab, s.hidden, read_pad(config, s)),
                                    module_list("layers", "PhiDecoderLayer", s.layers, parts),
                                    rotary_embedding("PhiRotaryEmbedding", spec.ropes[0]),
                                    dropout("embed_dropout", embd), layer_norm("final_layernorm", s.hidden, eps)}),
                         linear("lm_head", s.hidden, s.vocab, true)});
  return spec;
}

}  // namespace nibble::models
