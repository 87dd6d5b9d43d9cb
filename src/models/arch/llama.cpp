// LlamaForCausalLM (Touvron et al., 2023; Llama 2, 3 and the many models of that shape).
#include "models/arch/architectures.h"
#include "models/llama_family.h"

namespace nibble::models {

ModelSpec llama(const ConfigReader& config) {
  const bool has_bias = config.flag_or("attention_bias", false);
  return build_llama_family(config, {.name = "Llama",
                                     .has_qkv_bias = has_bias,
                                     .has_out_bias = has_bias,
                                     .has_mlp_bias = config.flag_or("mlp_bias", false)});
}

}  // namespace nibble::models
