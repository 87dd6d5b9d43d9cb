// OPTForCausalLM: learned positions from row 2 on; opt-350m norms after adding and embeds in fewer dimensions.
#include "models/activations.h"
#include "models/arch/architectures.h"
#include "models/sizes.h"

namespace nibble::models {

ModelSpec opt(const ConfigReader& config) {
  const Sizes s = read_sizes(config);
  const int64_t width = config.integer("ffn_dim", 1, kMaxWidth);
  const int64_t embed_width = config.find_integer("word_embed_proj_dim", 1, kMaxWidth).value_or(s.hidden);
  const bool is_pre_norm = config.flag_or("do_layer_norm_before", true), has_bias = config.flag_or("enable_bias", true);
  const bool has_final_norm = is_pre_norm && !config.flag_or("_remove_final_layer_norm", false);
  const Affine affine = config.flag_or("layer_norm_elementwise_affine", true) ? Affine::weight_and_bias : Affine::none;
  const ActivationName& act = read_activation(config, "activation_function", "relu");
  constexpr double kEps = 1e-5;

  ModelSpec spec = start_spec(config, "OPTForCausalLM", s, "model.decoder", "layers", "embed_tokens", true);
  spec.max_position_embeddings = config.integer_or("max_position_embeddings", 2048, 1, kMaxPositions);
  spec.positions = {.embed = "model.decoder.embed_positions", .offset = 2};
  const auto norm = [&](const char* module) {
    NormSpec result = layer_norm_of(module, kEps);
    result.size = s.hidden;
    return result;
  };
  if (has_final_norm) spec.final_norm = norm("model.decoder.final_layer_norm");

  LayerSpec layer;
  (is_pre_norm ? layer.attention_norm : layer.attention_sum_norm) = norm("self_attn_layer_norm");
  (is_pre_norm ? layer.mlp_norm : layer.mlp_sum_norm) = norm("final_layer_norm");
  layer.attention = attention_of(s);
  layer.attention.q = "self_attn.q_proj";
  layer.attention.k = "self_attn.k_proj";
  layer.attention.v = "self_attn.v_proj";
  layer.attention.out = "self_attn.out_proj";
  layer.mlp = {.gate = "", .up = "fc1", .down = "fc2"};
  layer.mlp.activation = act.activation;
  layer.mlp.intermediate_size = width;
  spec.layers.assign(static_cast<size_t>(s.layers), layer);

  std::vector<ModuleSpec> decoder{
      embedding("embed_tokens", s.vocab, embed_width, config.find_integer("pad_token_id", -s.vocab, s.vocab - 1)),
      embedding("embed_positions", spec.max_position_embeddings + 2, s.hidden, {})};
  decoder.back().class_name = "OPTLearnedPositionalEmbedding";
  if (embed_width != s.hidden) {
    spec.project_in = "model.decoder.project_in";
    spec.project_out = "model.decoder.project_out";
    decoder.push_back(linear("project_out", s.hidden, embed_width, false));
    decoder.push_back(linear("project_in", embed_width, s.hidden, false));
  }
  if (has_final_norm) decoder.push_back(layer_norm("final_layer_norm", s.hidden, kEps, affine));
  std::vector<ModuleSpec> layers;
  for (int64_t i = 0; i < s.layers; ++i)
    layers.push_back(container(
        std::to_string(i), "OPTDecoderLayer",
        {container("self_attn", "OPTAttention",
                   {linear("k_proj", s.hidden, s.hidden, has_bias), linear("v_proj", s.hidden, s.hidden, has_bias),
                    linear("q_proj", s.hidden, s.hidden, has_bias), linear("out_proj", s.hidden, s.hidden, has_bias)}),
         plain_module("activation_fn", act.class_name), layer_norm("self_attn_layer_norm", s.hidden, kEps, affine),
         linear("fc1", s.hidden, width, has_bias), linear("fc2", width, s.hidden, has_bias),
         layer_norm("final_layer_norm", s.hidden, kEps, affine)}));
  decoder.push_back(container("layers", "ModuleList", std::move(layers)));
  spec.root = container("", spec.architecture,
                        {container("model", "OPTModel", {container("decoder", "OPTDecoder", std::move(decoder))}),
                         linear("lm_head", embed_width, s.vocab, false)});
  return spec;
}

}  // namespace nibble::models
