// MptForCausalLM: ALiBi, no biases anywhere, norms with a weight only.
#include "models/alibi.h"
#include "models/arch/architectures.h"
#include "models/sizes.h"

namespace nibble::models {
namespace {

/// clip_qkv, and what the model's first code could do and transformers' model leaves out without a word.
void refuse_unsupported(const ConfigReader& config, const ConfigReader& attention) {
  config.accept_only("expansion_ratio", 4);
  config.accept_only("no_bias", true);
  config.accept_only("logit_scale", nullptr);
  if (config.find_text("norm_type") != "layernorm") config.accept_only("norm_type", "low_precision_layernorm");
  attention.accept_only("alibi", true);
  attention.accept_only("alibi_bias_max", 8);
  attention.accept_only("attn_type", "multihead_attention");
  attention.accept_only("clip_qkv", 0);
  for (const char* key : {"prefix_lm", "qk_ln", "attn_uses_sequence_id"}) attention.accept_only(key, false);
}

ModuleSpec printed(std::string name, std::string_view class_name, std::string detail) {
  ModuleSpec module = plain_module(std::move(name), class_name);
  module.detail = std::move(detail);
  return module;
}

}  // namespace

ModelSpec mpt(const ConfigReader& config) {
  const Sizes s = read_sizes(config, {.hidden = config.first_of({"hidden_size", "d_model"}),
                                      .layers = config.first_of({"num_hidden_layers", "n_layers"}),
                                      .heads = config.first_of({"num_attention_heads", "n_heads"})});
  const Json* object = config.find_object("attn_config");
  static const Json kNone = Json::object();
  const ConfigReader attention(object ? *object : kNone, config.source());
  refuse_unsupported(config, attention);
  const double eps = config.number_or("layer_norm_epsilon", 1e-5, 0, 1);
  const auto p = fmt::format("p={}, inplace=False", attention.integer_or("attn_pdrop", 0, 0, 1));

  ModelSpec spec = start_spec(config, "MptForCausalLM", s, "transformer", "blocks", "wte", true);
  spec.max_position_embeddings = config.integer_or("max_seq_len", 2048, 1, kMaxPositions);
  spec.alibi.slopes = alibi_slopes(s.heads);
  spec.final_norm = layer_norm_of("transformer.norm_f", eps);

  LayerSpec layer;
  layer.attention_norm = layer_norm_of("norm_1", eps);
  layer.mlp_norm = layer_norm_of("norm_2", eps);
  layer.attention = attention_of(s);
  if (const auto scale = attention.find_number("softmax_scale", 0, 1e6))
    layer.attention.scale = static_cast<float>(*scale);
  layer.attention.qkv = "attn.Wqkv";
  layer.attention.out = "attn.out_proj";
  layer.attention.has_alibi = true;
  layer.mlp = mlp_of("ffn.up_proj", "ffn.down_proj", kernels::Activation::gelu, 4 * s.hidden);
  spec.layers.assign(static_cast<size_t>(s.layers), layer);

  const std::vector<ModuleSpec> parts{
      layer_norm("norm_1", s.hidden, eps, Affine::weight),
      container("attn", "MptAttention",
                {linear("Wqkv", s.hidden, 3 * s.hidden, false), linear("out_proj", s.hidden, s.hidden, false)}),
      layer_norm("norm_2", s.hidden, eps, Affine::weight),
      container("ffn", "MptMLP",
                {linear("up_proj", s.hidden, 4 * s.hidden, false), printed("act", "GELU", "approximate='none'"),
                 linear("down_proj", 4 * s.hidden, s.hidden, false)}),
      printed("resid_attn_dropout", "Dropout", p)};
  spec.root =
      container("", spec.architecture,
                {container("transformer", "MptModel",
                           {embedding("wte", s.vocab, s.hidden, {}), module_list("blocks", "MptBlock", s.layers, parts),
                            layer_norm("norm_f", s.hidden, eps, Affine::weight)}),
                 linear("lm_head", s.hidden, s.vocab, false)});
  return spec;
}

}  // namespace nibble::models
