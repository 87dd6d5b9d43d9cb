// MistralForCausalLM (Jiang et al., 2023): Llama with a sliding window in every layer.
#include "models/arch/architectures.h"
#include "models/llama_family.h"

namespace nibble::models {

ModelSpec mistral(const ConfigReader& config) {
  LlamaFamily family{.name = "Mistral", .default_kv_heads = 8, .default_max_positions = 131072};
  // A null window means none; a missing one means the class's default.
  const auto window = config.find_integer("sliding_window", 1, kMaxPositions);
  if (window || !config.json().contains("sliding_window"))
    family.windows.assign(static_cast<size_t>(config.integer("num_hidden_layers", 1, kMaxLayers)),
                          window.value_or(4096));
  return build_llama_family(config, family);
}

}  // namespace nibble::models
