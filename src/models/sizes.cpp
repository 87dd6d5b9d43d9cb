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

}  // namespace nibble::models
