// GPTBigCodeForCausalLM (SantaCoder, StarCoder): GPT-2 with plain linear layers and one head of keys and values.
#include "models/activations.h"
#include "models/arch/architectures.h"
#include "models/sizes.h"

namespace nibble::models {

ModelSpec gpt_bigcode(const ConfigReader& config) {
  const Sizes s = read_sizes(config, {.hidden = config.first_of({"hidden_size", "n_embd"}),
                                      .layers = config.first_of({"num_hidden_layers", "n_layer"}),
                                      .heads = config.first_of({"num_attention_heads", "n_head"})});
  const int64_t width = config.find_integer("n_inner", 1, kMaxWidth).value_or(4 * s.hidden);
  const double eps = config.number_or("layer_norm_epsilon", 1e-5, 0, 1);
  const double embd = config.number_or("embd_pdrop", 0.1, 0, 1), resid = config.number_or("resid_pdrop", 0.1, 0, 1);
  const ActivationName& act = read_activation(config, "activation_function", "gelu_pytorch_tanh");
  const bool is_multi_query = config.flag_or("multi_query", true);
  config.accept_only("add_cross_attention", false);

  ModelSpec spec = start_spec(config, "GPTBigCodeForCausalLM", s, "transformer", "h", "wte", true);
  const std::string_view positions = config.first_of({"max_position_embeddings", "n_positions"});
  spec.max_position_embeddings = config.integer_or(positions, 1024, 1, kMaxWidth);
  spec.positions.embed = "transformer.wpe";
  spec.final_norm = layer_norm_of("transformer.ln_f", eps);
  spec.ignored_suffixes = {".attn.bias", ".attn.masked_bias", "transformer.bias"};

  LayerSpec layer;
  layer.attention_norm = layer_norm_of("ln_1", eps);
  layer.mlp_norm = layer_norm_of("ln_2", eps);
  layer.attention = attention_of(s);
  layer.attention.kv_heads = layer.attention.qkv_groups = is_multi_query ? 1 : s.heads;
  layer.attention.qkv = "attn.c_attn";
  layer.attention.out = "attn.c_proj";
  if (!config.flag_or("scale_attn_weights", true)) layer.attention.scale = 1;
  layer.mlp = mlp_of("mlp.c_fc", "mlp.c_proj", act.activation, width);
  spec.layers.assign(static_cast<size_t>(s.layers), layer);

  const int64_t qkv = s.hidden + 2 * layer.attention.kv_heads * s.head_dim;
  const std::vector<ModuleSpec> parts{
      layer_norm("ln_1", s.hidden, eps),
      container("attn", "GPTBigCodeAttention",
                {linear("c_attn", s.hidden, qkv, true), linear("c_proj", s.hidden, s.hidden, true),
                 dropout("resid_dropout", resid)}),
      layer_norm("ln_2", s.hidden, eps),
      container("mlp", "GPTBigCodeMLP",
                {linear("c_fc", s.hidden, width, true), linear("c_proj", width, s.hidden, true),
                 plain_module("act", act.class_name), dropout("dropout", resid)})};
  const BufferSpec mask{"bias", spec.max_position_embeddings * spec.max_position_embeddings, DType::u8};
  spec.root =
      container("", spec.architecture,
                {container("transformer", "GPTBigCodeModel",
                           {embedding("wte", s.vocab, s.hidden, {}),
                            embedding("wpe", spec.max_position_embeddings, s.hidden, {}), dropout("drop", embd),
                            module_list("h", "GPTBigCodeBlock", s.layers, parts), layer_norm("ln_f", s.hidden, eps)},
                           {mask}),
                 linear("lm_head", s.hidden, s.vocab, false)});
  return spec;
}

}  // namespace nibble::models
