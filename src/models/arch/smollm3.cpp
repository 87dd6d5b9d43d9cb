// SmolLM3ForCausalLM: Llama that rotates q and k in three layers of four.
#include "models/arch/architectures.h"
#include "models/llama_family.h"

namespace nibble::models {
namespace {

/// Whether each layer rotates: no_rope_layers says 1 for a layer that does.
std::vector<bool> read_rotating_layers(const ConfigReader& config) {
  std::vector<bool> result(static_cast<size_t>(config.integer("num_hidden_layers", 1, kMaxLayers)));
  const auto interval = static_cast<size_t>(config.integer_or("no_rope_layer_interval", 4, 1, kMaxLayers));
  const auto flags = config.json().find("no_rope_layers");
  const bool has_flags = flags != config.json().end() && !flags->is_null();
  if (has_flags && (!flags->is_array() || flags->size() != result.size()))
    config.refuse("no_rope_layers", flags->is_array() ? fmt::format("{} entries", flags->size()) : flags->type_name(),
                  fmt::format("a list of {} entries", result.size()));
  for (size_t i = 0; i < result.size(); ++i) {
    if (has_flags && (*flags)[i] != 0 && (*flags)[i] != 1)
      config.refuse("no_rope_layers", short_text((*flags)[i]), "entries of 0 and 1");
    result[i] = has_flags ? (*flags)[i] == 1 : (i + 1) % interval != 0;
  }
  return result;
}

}  // namespace

ModelSpec smollm3(const ConfigReader& config) {
  LlamaFamily family{.name = "SmolLM3"};
  family.has_qkv_bias = family.has_out_bias = config.flag_or("attention_bias", false);
  family.has_mlp_bias = config.flag_or("mlp_bias", false);
  family.is_tied_by_default = true;
  family.default_kv_heads = 4;
  family.default_max_positions = 32768;
  family.default_theta = 2e6;
  family.default_pad = 128004;
  const std::vector<bool> rotating = read_rotating_layers(config);
  for (const bool is_rotating : rotating)
    family.layer_ropes.push_back(is_rotating ? std::optional<size_t>(0) : std::nullopt);
  const bool has_window = config.flag_or("use_sliding_window", false) &&
                          config.find_integer("sliding_window", 1, kMaxPositions).has_value();
  const auto slides = [&](int64_t i) { return has_window && !rotating[static_cast<size_t>(i)]; };
  family.windows = read_windows(config, read_sliding_layers(config, slides), 0);
  return build_llama_family(config, family);
}

}  // namespace nibble::models
