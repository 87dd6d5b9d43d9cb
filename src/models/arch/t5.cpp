// T5ForConditionalGeneration, of v1.0 (ReLU, tied head) and v1.1 (gated, a head of its own: flan-t5).
#include "models/activations.h"
#include "models/arch/architectures.h"
#include "models/module_tree.h"
#include "models/sizes.h"

#include <cmath>

namespace nibble::models {
namespace {

struct T5 {
  int64_t hidden, width, heads, head_dim, buckets, vocab;
  double eps, drop;
  bool is_gated;
  const ActivationName& act;

  NormSpec norm(std::string module) const { return {.module = std::move(module), .eps = eps}; }

  ModuleSpec norm_module(std::string name) const {
    ModuleSpec module = rms_norm(std::move(name), "T5LayerNorm", hidden, eps);
    module.detail.clear();
    return module;
  }

  AttentionSpec attention(const std::string& prefix) const {
    AttentionSpec result{.q = prefix + ".q", .k = prefix + ".k", .v = prefix + ".v", .out = prefix + ".o"};
    result.heads = result.kv_heads = heads;
    result.head_dim = head_dim;  // scale 1: trained without
    return result;
  }

  LayerSpec layer(bool is_decoder, size_t bias) const {
    const std::string mlp = is_decoder ? "layer.2." : "layer.1.";
    LayerSpec result;
    result.attention_norm = norm("layer.0.layer_norm");
    result.attention = attention("layer.0.SelfAttention");
    result.attention.is_causal = is_decoder;
    result.attention.relative_bias = bias;
    if (is_decoder) {
      result.cross_norm = norm("layer.1.layer_norm");
      result.cross = attention("layer.1.EncDecAttention");
      result.cross.is_causal = false;
    }
    result.mlp_norm = norm(mlp + "layer_norm");
    result.mlp = {.gate = is_gated ? mlp + "DenseReluDense.wi_0" : "",
                  .up = mlp + (is_gated ? "DenseReluDense.wi_1" : "DenseReluDense.wi"),
                  .down = mlp + "DenseReluDense.wo"};
    result.mlp.activation = act.activation;
    result.mlp.intermediate_size = width;
    return result;
  }

  ModuleSpec sublayer(const char* name, const char* class_name, ModuleSpec block) const {
    return container(name, class_name, {std::move(block), norm_module("layer_norm"), dropout("dropout", drop)});
  }

  ModuleSpec attention_module(const char* name, bool has_bias) const {
    const int64_t inner = heads * head_dim;
    std::vector<ModuleSpec> parts{linear("q", hidden, inner, false), linear("k", hidden, inner, false),
                                  linear("v", hidden, inner, false), linear("o", inner, hidden, false)};
    if (has_bias) parts.push_back(embedding("relative_attention_bias", buckets, heads, {}));
    return container(name, "T5Attention", std::move(parts));
  }

  ModuleSpec mlp_module() const {
    std::vector<ModuleSpec> parts{linear(is_gated ? "wi_0" : "wi", hidden, width, false)};
    if (is_gated) parts.push_back(linear("wi_1", hidden, width, false));
    parts.push_back(linear("wo", width, hidden, false));
    parts.push_back(dropout("dropout", drop));
    parts.push_back(plain_module("act", act.class_name));
    return container("DenseReluDense", is_gated ? "T5DenseGatedActDense" : "T5DenseActDense", std::move(parts));
  }

  ModuleSpec stack(const char* name, int64_t layers, bool is_decoder) const {
    std::vector<ModuleSpec> blocks;
    for (int64_t i = 0; i < layers; ++i) {
      std::vector<ModuleSpec> parts{sublayer("0", "T5LayerSelfAttention", attention_module("SelfAttention", i == 0))};
      if (is_decoder)
        parts.push_back(sublayer("1", "T5LayerCrossAttention", attention_module("EncDecAttention", false)));
      parts.push_back(sublayer(is_decoder ? "2" : "1", "T5LayerFF", mlp_module()));
      blocks.push_back(container(std::to_string(i), "T5Block", {container("layer", "ModuleList", std::move(parts))}));
    }
    return container(name, "T5Stack",
                     {embedding("embed_tokens", vocab, hidden, {}), container("block", "ModuleList", std::move(blocks)),
                      norm_module("final_layer_norm"), dropout("dropout", drop)});
  }
};

constexpr std::string_view kBias = ".block.0.layer.0.SelfAttention.relative_attention_bias";

}  // namespace

ModelSpec t5(const ConfigReader& config) {
  if (!config.flag_or("is_encoder_decoder", true)) config.refuse("is_encoder_decoder", false, "true");
  const std::string form = config.text_or("feed_forward_proj", "relu");
  const bool is_gated = form.starts_with("gated-");
  const std::string name = form == "gated-gelu" ? "gelu_new" : is_gated ? form.substr(6) : form;
  const Json act_config{{"feed_forward_proj", name}};
  const T5 t{.hidden = config.integer("d_model", 1, kMaxWidth),
             .width = config.integer("d_ff", 1, kMaxWidth),
             .heads = config.integer("num_heads", 1, kMaxHeads),
             .head_dim = config.integer("d_kv", 1, kMaxWidth),
             .buckets = config.integer_or("relative_attention_num_buckets", 32, 4, 1 << 16),
             .vocab = config.integer("vocab_size", 1, kMaxVocab),
             .eps = config.number_or("layer_norm_epsilon", 1e-6, 0, 1),
             .drop = config.number_or("dropout_rate", 0.1, 0, 1),
             .is_gated = is_gated,
             .act = read_activation(ConfigReader(act_config, config.source()), "feed_forward_proj", "relu")};
  const int64_t layers = config.integer("num_layers", 1, kMaxLayers);
  const int64_t decoder_layers = config.integer_or("num_decoder_layers", layers, 1, kMaxLayers);
  const int64_t distance = config.integer_or("relative_attention_max_distance", 128, 1, kMaxPositions);
  if (distance <= t.buckets / 2)
    config.refuse("relative_attention_max_distance", distance,
                  fmt::format("more than half of relative_attention_num_buckets ({})", t.buckets));

  ModelSpec spec;
  spec.architecture = "T5ForConditionalGeneration";
  spec.base_prefix = "transformer.";
  spec.embed = "shared";
  spec.head = "lm_head";
  spec.hidden_size = t.hidden;
  spec.vocab_size = t.vocab;
  spec.max_position_embeddings = kMaxPositions;  // relative positions have no last one
  spec.keep_in_fp32 = {"wo"};
  spec.tied = {{"encoder.embed_tokens.weight", "shared.weight"}, {"decoder.embed_tokens.weight", "shared.weight"}};
  spec.ignored_suffixes = {".EncDecAttention.relative_attention_bias.weight"};
  spec.relative_biases = {{"encoder" + std::string(kBias), t.buckets, distance, true},
                          {"decoder" + std::string(kBias), t.buckets, distance, false}};
  spec.encoder = {.layers_prefix = "encoder.block.",
                  .layers = std::vector<LayerSpec>(static_cast<size_t>(layers), t.layer(false, 0)),
                  .final_norm = t.norm("encoder.final_layer_norm")};
  spec.layers_prefix = "decoder.block.";
  spec.layers.assign(static_cast<size_t>(decoder_layers), t.layer(true, 1));
  spec.final_norm = t.norm("decoder.final_layer_norm");
  // What "tie_word_embeddings" says of the original files; transformers 5 writes the other key.
  if (config.flag_or("scale_decoder_outputs", config.flag_or("tie_word_embeddings", true))) {
    spec.tied.emplace_back("lm_head.weight", "shared.weight");
    spec.final_norm.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(t.hidden)));
  }
  spec.root = container("", spec.architecture,
                        {embedding("shared", t.vocab, t.hidden, {}), t.stack("encoder", layers, false),
                         t.stack("decoder", decoder_layers, true), linear("lm_head", t.hidden, t.vocab, false)});
  return spec;
}

}  // namespace nibble::models
