// Gemma2ForCausalLM: Gemma with norms on both sides of each block, soft caps, and a window in every other layer.
#include "models/arch/architectures.h"
#include "models/llama_family.h"

namespace nibble::models {

ModelSpec gemma2(const ConfigReader& config) {
  if (config.flag_or("use_bidirectional_attention", false)) config.refuse("use_bidirectional_attention", true, "false");
  LlamaFamily family{.name = "Gemma2"};
  family.has_qkv_bias = family.has_out_bias = config.flag_or("attention_bias", false);
  family.norms = NormPlace::both;
  family.norm_offset = 1;
  family.has_scaled_embedding = family.is_tied_by_default = true;
  family.default_kv_heads = 4;
  family.default_head_dim = 256;
  family.default_pad = 0;
  family.default_max_positions = 8192;
  family.activation_key = "hidden_activation";
  family.default_activation = "gelu_pytorch_tanh";
  family.windows = read_windows(config, read_sliding_layers(config, [](int64_t i) { return i % 2 == 0; }), 4096);
  family.query_scalar = config.number_or("query_pre_attn_scalar", 256, 1e-6, 1e9);
  family.softcap = read_softcap(config, "attn_logit_softcapping", 50);
  family.logit_softcap = read_softcap(config, "final_logit_softcapping", 30);
  return build_llama_family(config, family);
}

}  // namespace nibble::models
