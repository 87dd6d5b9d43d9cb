// Reads the common keys.
#include "models/sizes.h"

#include <cmath>

#include "models/module_tree.h"

namespace nibble::models {

Sizes read_sizes(const ConfigReader& config, const SizeKeys& keys) {
  Sizes s{};
  s.hidden = config.integer(keys.hidden, 1, kMaxWidth);
  s.layers = config.integer(keys.layers, 1, kMaxLayers);
  s.heads = config.integer(keys.heads, 1, kMaxHeads);
  s.vocab = config.integer("vocab_size", 1, kMaxVocab);
  if (s.hidden % s.heads != 0)
    config.refuse(keys.heads, s.heads, fmt::format("a divisor of {} ({})", keys.hidden, s.hidden));
  s.head_dim = s.hidden / s.heads;
  return s;
}

ModelSpec start_spec(const ConfigReader& config, std::string_view architecture, const Sizes& sizes,
                     const std::string& base, const std::string& layers, const std::string& embed,
                     bool is_tied_by_default) {
  ModelSpec spec;
  spec.architecture = architecture;
  spec.base_prefix = base.substr(0, base.find('.')) + ".";
  spec.layers_prefix = base + "." + layers + ".";
  spec.embed = base + "." + embed;
  spec.head = "lm_head";
  if (config.flag_or("tie_word_embeddings", is_tied_by_default))
    spec.tied.emplace_back("lm_head.weight", spec.embed + ".weight");
  spec.hidden_size = sizes.hidden;
  spec.vocab_size = sizes.vocab;
  return spec;
}

int64_t read_kv_heads(const ConfigReader& config, std::string_view key, int64_t heads, int64_t fallback) {
  const int64_t kv_heads = config.integer_or(key, fallback, 1, kMaxHeads);
  if (heads % kv_heads != 0) config.refuse(key, kv_heads, fmt::format("a divisor of the attention heads ({})", heads));
  return kv_heads;
}

ModuleSpec rotary_embedding(std::string_view class_name, const nn::RopeSpec& rope) {
  const int64_t angles = rope.rotary_dim / 2;
  return plain_module("rotary_emb", class_name, {{"inv_freq", angles}, {"original_inv_freq", angles}});
}

std::optional<int64_t> read_pad(const ConfigReader& config, const Sizes& sizes) {
  return config.find_integer("pad_token_id", -sizes.vocab, sizes.vocab - 1);
}

NormSpec layer_norm_of(std::string module, double eps) {
  return {.module = std::move(module), .kind = nn::NormKind::layer, .eps = eps};
}

AttentionSpec attention_of(const Sizes& sizes) {
  AttentionSpec attention;
  attention.heads = attention.kv_heads = sizes.heads;
  attention.head_dim = sizes.head_dim;
  attention.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(sizes.head_dim)));
  return attention;
}

AttentionSpec attention_of(const Sizes& sizes, const std::string& prefix, const std::string& out) {
  AttentionSpec attention = attention_of(sizes);
  attention.q = prefix + "q_proj";
  attention.k = prefix + "k_proj";
  attention.v = prefix + "v_proj";
  attention.out = prefix + out;
  return attention;
}

MlpSpec mlp_of(std::string up, std::string down, kernels::Activation activation, int64_t width) {
  return {
      .gate = "", .up = std::move(up), .down = std::move(down), .activation = activation, .intermediate_size = width};
}

}  // namespace nibble::models
