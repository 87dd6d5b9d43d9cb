// Qwen3ForCausalLM: Llama with RMSNorm on each head of q and k before the rotation.
#include "models/arch/architectures.h"
#include "models/llama_family.h"

namespace nibble::models {

ModelSpec qwen3(const ConfigReader& config) {
  const bool has_bias = config.flag_or("attention_bias", false);
  LlamaFamily family{.name = "Qwen3",
                     .has_qkv_bias = has_bias,
                     .has_out_bias = has_bias,
                     .qk_norm = QkNorm::head,
                     .default_head_dim = 128,
                     .default_max_positions = 32768};
  family.windows = read_qwen_windows(config);
  return build_llama_family(config, family);
}

}  // namespace nibble::models
