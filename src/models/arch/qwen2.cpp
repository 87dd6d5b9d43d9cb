// Qwen2ForCausalLM: Llama with biases on q, k and v, and a window on the upper layers if asked for.
#include "models/arch/architectures.h"
#include "models/llama_family.h"

namespace nibble::models {

ModelSpec qwen2(const ConfigReader& config) {
  LlamaFamily family{.name = "Qwen2", .has_qkv_bias = true, .default_max_positions = 32768};
  family.windows = read_qwen_windows(config);
  return build_llama_family(config, family);
}

}  // namespace nibble::models
