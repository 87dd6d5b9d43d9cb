// GemmaForCausalLM: Llama whose norms multiply by one plus their weights, with scaled embeddings and GELU.
#include "models/arch/architectures.h"
#include "models/llama_family.h"

namespace nibble::models {

ModelSpec gemma(const ConfigReader& config) {
  if (config.flag_or("use_bidirectional_attention", false)) config.refuse("use_bidirectional_attention", true, "false");
  LlamaFamily family{.name = "Gemma"};
  family.has_qkv_bias = family.has_out_bias = config.flag_or("attention_bias", false);
  family.norm_offset = 1;
  family.has_scaled_embedding = family.is_tied_by_default = true;
  family.default_kv_heads = 16;
  family.default_head_dim = 256;
  family.default_pad = 0;
  family.default_max_positions = 8192;
  family.default_activation = "gelu_pytorch_tanh";
  const std::string newer = config.text_or("hidden_activation", "gelu_pytorch_tanh");
  if (newer != "gelu_pytorch_tanh") config.refuse("hidden_activation", newer, "gelu_pytorch_tanh");
  // The first releases say "gelu" and mean the approximation.
  if (config.text_or("hidden_act", "gelu") == "gelu") family.activation_key = "hidden_activation";
  return build_llama_family(config, family);
}

}  // namespace nibble::models
