// GPTNeoForCausalLM: scores without scaling, layers that see everything or a window.
#include "models/activations.h"
#include "models/arch/architectures.h"
#include "models/sizes.h"

namespace nibble::models {
namespace {

using Names = std::vector<std::string>;

/// "global" or "local" for each layer, from patterns and how often each comes: [[["global", "local"], 12]].
Names read_attention_layers(const ConfigReader& config, int64_t layers) {
  using Types = std::vector<std::pair<Names, int64_t>>;
  const auto list = find_value<Names>(config.json(), "attention_layers", config.source());
  const Types fallback = list ? Types{{*list, 1}} : Types{{{"global", "local"}, 12}};
  const auto types = find_value<Types>(config.json(), "attention_types", config.source()).value_or(fallback);
  Names names;
  for (const auto& [pattern, count] : types)
    for (int64_t i = 0; i < std::min(count, layers + 1) && std::ssize(names) <= layers; ++i)
      names.insert(names.end(), pattern.begin(), pattern.end());
  if (std::ssize(names) != layers)
    config.refuse("attention_types", fmt::format("{} layers", names.size()), fmt::format("num_layers ({})", layers));
  for (const std::string& name : names)
    if (name != "global" && name != "local") config.refuse("attention_types", name, "global or local");
  config.accept_only("attention_layers", Json(names));
  return names;
}

}  // namespace

ModelSpec gpt_neo(const ConfigReader& config) {
  const Sizes s = read_sizes(config, {.layers = config.first_of({"num_hidden_layers", "num_layers"}),
                                      .heads = config.first_of({"num_attention_heads", "num_heads"})});
  const int64_t width = config.find_integer("intermediate_size", 1, kMaxWidth).value_or(4 * s.hidden);
  const double eps = config.number_or("layer_norm_epsilon", 1e-5, 0, 1);
  const double embed = config.number_or("embed_dropout", 0, 0, 1), resid = config.number_or("resid_dropout", 0, 0, 1);
  const ActivationName& act = read_activation(config, "activation_function", "gelu_new");

  ModelSpec spec = start_spec(config, "GPTNeoForCausalLM", s, "transformer", "h", "wte", true);
  spec.max_position_embeddings = config.integer_or("max_position_embeddings", 2048, 1, kMaxWidth);
  spec.positions.embed = "transformer.wpe";
  spec.final_norm = layer_norm_of("transformer.ln_f", eps);
  spec.ignored_suffixes = {".attn.attention.bias", ".attn.attention.masked_bias"};

  LayerSpec layer;
  layer.attention_norm = layer_norm_of("ln_1", eps);
  layer.mlp_norm = layer_norm_of("ln_2", eps);
  layer.attention = attention_of(s, "attn.attention.", "out_proj");
  layer.attention.scale = 1;
  layer.mlp = mlp_of("mlp.c_fc", "mlp.c_proj", act.activation, width);
  const int64_t window = config.integer_or("window_size", 256, 1, kMaxPositions);
  for (const std::string& name : read_attention_layers(config, s.layers)) {
    layer.attention.window = name == "local" ? window : 0;
    spec.layers.push_back(layer);
  }

  const BufferSpec mask{"bias", spec.max_position_embeddings * spec.max_position_embeddings, DType::u8};
  ModuleSpec attention = container(
      "attention", "GPTNeoSelfAttention",
      {dropout("attn_dropout", config.number_or("attention_dropout", 0, 0, 1)), dropout("resid_dropout", resid),
       linear("k_proj", s.hidden, s.hidden, false), linear("v_proj", s.hidden, s.hidden, false),
       linear("q_proj", s.hidden, s.hidden, false), linear("out_proj", s.hidden, s.hidden, true)},
      {mask});
  const std::vector<ModuleSpec> parts{
      layer_norm("ln_1", s.hidden, eps), container("attn", "GPTNeoAttention", {attention}),
      layer_norm("ln_2", s.hidden, eps),
      container("mlp", "GPTNeoMLP",
                {linear("c_fc", s.hidden, width, true), linear("c_proj", width, s.hidden, true),
                 plain_module("act", act.class_name), dropout("dropout", resid)})};
  spec.root =
      container("", spec.architecture,
                {container("transformer", "GPTNeoModel",
                           {embedding("wte", s.vocab, s.hidden, {}),
                            embedding("wpe", spec.max_position_embeddings, s.hidden, {}), dropout("drop", embed),
                            module_list("h", "GPTNeoBlock", s.layers, parts), layer_norm("ln_f", s.hidden, eps)}),
                 linear("lm_head", s.hidden, s.vocab, false)});
  return spec;
}

}  // namespace nibble::models
