// Olmo2ForCausalLM: Llama with norms of what the blocks add instead of what they read, and of q and k as a whole.
#include "models/arch/architectures.h"
#include "models/llama_family.h"

namespace nibble::models {

ModelSpec olmo2(const ConfigReader& config) {
  LlamaFamily family{.name = "Olmo2"};
  family.has_qkv_bias = family.has_out_bias = config.flag_or("attention_bias", false);
  family.norms = NormPlace::after;
  family.qk_norm = QkNorm::width;
  family.default_eps = 1e-5;
  family.default_pad = 1;
  return build_llama_family(config, family);
}

}  // namespace nibble::models
