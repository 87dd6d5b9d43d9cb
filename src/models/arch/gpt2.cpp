// GPT2LMHeadModel: learned positions, and Conv1D layers whose weights are stored (in, out).
#include "models/activations.h"
#include "models/arch/architectures.h"
#include "models/sizes.h"

namespace nibble::models {

ModelSpec gpt2(const ConfigReader& config) {
  const Sizes s = read_sizes(config, {.hidden = "n_embd", .layers = "n_layer", .heads = "n_head"});
  const int64_t width = config.find_integer("n_inner", 1, kMaxWidth).value_or(4 * s.hidden);
  const double eps = config.number_or("layer_norm_epsilon", 1e-5, 0, 1);
  const double embd = config.number_or("embd_pdrop", 0.1, 0, 1), attn = config.number_or("attn_pdrop", 0.1, 0, 1),
               resid = config.number_or("resid_pdrop", 0.1, 0, 1);
  const ActivationName& act = read_activation(config, "activation_function", "gelu_new");

  ModelSpec spec = start_spec(config, "GPT2LMHeadModel", s, "transformer", "h", "wte", true);
  spec.max_position_embeddings = config.integer_or("n_positions", 1024, 1, kMaxPositions);
  spec.positions.embed = "transformer.wpe";
  spec.final_norm = layer_norm_of("transformer.ln_f", eps);
  spec.ignored_suffixes = {".attn.bias", ".attn.masked_bias"};

  LayerSpec layer;
  layer.attention_norm = layer_norm_of("ln_1", eps);
  layer.mlp_norm = layer_norm_of("ln_2", eps);
  layer.attention = attention_of(s);
  layer.attention.qkv = "attn.c_attn";
  layer.attention.out = "attn.c_proj";
  if (!config.flag_or("scale_attn_weights", true)) layer.attention.scale = 1;
  layer.mlp = {.gate = "", .up = "mlp.c_fc", .down = "mlp.c_proj"};
  layer.mlp.activation = act.activation;
  layer.mlp.intermediate_size = width;
  const bool is_scaled_by_index = config.flag_or("scale_attn_by_inverse_layer_idx", false);

  std::vector<ModuleSpec> layers;
  for (int64_t i = 0; i < s.layers; ++i) {
    spec.layers.push_back(layer);
    if (is_scaled_by_index) spec.layers.back().attention.scale /= static_cast<float>(i + 1);
    layers.push_back(
        container(std::to_string(i), "GPT2Block",
                  {layer_norm("ln_1", s.hidden, eps),
                   container("attn", "GPT2Attention",
                             {conv1d("c_attn", s.hidden, 3 * s.hidden), conv1d("c_proj", s.hidden, s.hidden),
                              dropout("attn_dropout", attn), dropout("resid_dropout", resid)}),
                   layer_norm("ln_2", s.hidden, eps),
                   container("mlp", "GPT2MLP",
                             {conv1d("c_fc", s.hidden, width), conv1d("c_proj", width, s.hidden),
                              plain_module("act", act.class_name), dropout("dropout", resid)})}));
  }
  spec.root =
      container("", spec.architecture,
                {container("transformer", "GPT2Model",
                           {embedding("wte", s.vocab, s.hidden, {}),
                            embedding("wpe", spec.max_position_embeddings, s.hidden, {}), dropout("drop", embd),
                            container("h", "ModuleList", std::move(layers)), layer_norm("ln_f", s.hidden, eps)}),
                 linear("lm_head", s.hidden, s.vocab, false)});
  return spec;
}

}  // namespace nibble::models
