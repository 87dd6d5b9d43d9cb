// GPTJForCausalLM: neighbours rotate in pairs, parallel blocks behind one norm, a head with bias.
#include "models/activations.h"
#include "models/arch/architectures.h"
#include "models/sizes.h"

namespace nibble::models {
namespace {

nn::RopeSpec read_gptj_rope(const ConfigReader& config, int64_t head_dim) {
  nn::RopeSpec rope;
  rope.interleaved = true;
  const bool is_null = config.json().contains("rotary_dim") && config.json()["rotary_dim"].is_null();
  rope.rotary_dim = is_null ? 0 : config.integer_or("rotary_dim", 64, 2, kMaxHeads);
  if (rope.rotary_dim < 2 || rope.rotary_dim % 2 != 0 || rope.rotary_dim > head_dim)
    config.refuse("rotary_dim", is_null ? "null" : std::to_string(rope.rotary_dim),
                  fmt::format("an even number from 2 to the size of a head ({})", head_dim));
  return rope;
}

}  // namespace

ModelSpec gptj(const ConfigReader& config) {
  const Sizes s = read_sizes(config, {.hidden = config.first_of({"hidden_size", "n_embd"}),
                                      .layers = config.first_of({"num_hidden_layers", "n_layer"}),
                                      .heads = config.first_of({"num_attention_heads", "n_head"})});
  const int64_t width = config.find_integer("n_inner", 1, kMaxWidth).value_or(4 * s.hidden);
  const double eps = config.number_or("layer_norm_epsilon", 1e-5, 0, 1);
  const double embd = config.number_or("embd_pdrop", 0, 0, 1), attn = config.number_or("attn_pdrop", 0, 0, 1),
               resid = config.number_or("resid_pdrop", 0, 0, 1);
  const ActivationName& act = read_activation(config, "activation_function", "gelu_new");
  config.accept_only("rotary", true);

  ModelSpec spec = start_spec(config, "GPTJForCausalLM", s, "transformer", "h", "wte", false);
  const std::string_view positions = config.first_of({"max_position_embeddings", "n_positions"});
  spec.max_position_embeddings = config.integer_or(positions, 2048, 1, kMaxPositions);
  spec.ropes.push_back(read_gptj_rope(config, s.head_dim));
  spec.final_norm = layer_norm_of("transformer.ln_f", eps);
  spec.ignored_suffixes = {".attn.bias", ".attn.masked_bias"};

  LayerSpec layer;
  layer.attention_norm = layer_norm_of("ln_1", eps);
  layer.is_parallel = true;
  layer.attention = attention_of(s, "attn.", "out_proj");
  layer.attention.rope = 0;
  layer.mlp = mlp_of("mlp.fc_in", "mlp.fc_out", act.activation, width);
  spec.layers.assign(static_cast<size_t>(s.layers), layer);

  const BufferSpec angles{"embed_positions", spec.max_position_embeddings * spec.ropes[0].rotary_dim};
  const std::vector<ModuleSpec> parts{
      layer_norm("ln_1", s.hidden, eps),
      container("attn", "GPTJAttention",
                {dropout("attn_dropout", attn), dropout("resid_dropout", resid),
                 linear("k_proj", s.hidden, s.hidden, false), linear("v_proj", s.hidden, s.hidden, false),
                 linear("q_proj", s.hidden, s.hidden, false), linear("out_proj", s.hidden, s.hidden, false)},
                {angles}),
      container("mlp", "GPTJMLP",
                {linear("fc_in", s.hidden, width, true), linear("fc_out", width, s.hidden, true),
                 plain_module("act", act.class_name), dropout("dropout", resid)})};
  spec.root = container("", spec.architecture,
                        {container("transformer", "GPTJModel",
                                   {embedding("wte", s.vocab, s.hidden, {}), dropout("drop", embd),
                                    module_list("h", "GPTJBlock", s.layers, parts), layer_norm("ln_f", s.hidden, eps)}),
                         linear("lm_head", s.hidden, s.vocab, true)});
  return spec;
}

}  // namespace nibble::models
