// Gemma3ForCausalLM (the text model): Gemma 2 without caps on scores, with norms on q and k and a second rope for the
// layers with a window.
#include <algorithm>

#include "models/arch/architectures.h"
#include "models/llama_family.h"

namespace nibble::models {

ModelSpec gemma3(const ConfigReader& config) {
  if (config.flag_or("use_bidirectional_attention", false)) config.refuse("use_bidirectional_attention", true, "false");
  LlamaFamily family{.name = "Gemma3"};
  family.has_qkv_bias = family.has_out_bias = config.flag_or("attention_bias", false);
  family.norms = NormPlace::both;
  family.norm_offset = 1;
  family.qk_norm = QkNorm::head;
  family.has_scaled_embedding = family.is_tied_by_default = true;
  family.model_class = "TextModel";
  family.default_kv_heads = 4;
  family.default_head_dim = 256;
  family.default_pad = 0;
  family.default_max_positions = 131072;
  family.activation_key = "hidden_activation";
  family.default_activation = "gelu_pytorch_tanh";
  family.query_scalar = config.number_or("query_pre_attn_scalar", 256, 1e-6, 1e9);
  family.logit_softcap = read_softcap(config, "final_logit_softcapping", 0);

  const std::string_view pattern_key = config.first_of({"sliding_window_pattern", "_sliding_window_pattern"});
  const int64_t pattern = config.integer_or(pattern_key, 6, 1, kMaxLayers);
  const auto sliding = read_sliding_layers(config, [&](int64_t i) { return (i + 1) % pattern != 0; });
  family.windows = read_windows(config, sliding, 4096);

  // A rope for each kind of layer that the model has.
  const int64_t head_dim = config.integer_or("head_dim", 256, 2, kMaxHeads);
  const int64_t positions =
      config.integer_or("max_position_embeddings", family.default_max_positions, 1, kMaxPositions);
  for (const bool is_sliding : {true, false}) {
    if (std::find(sliding.begin(), sliding.end(), is_sliding) == sliding.end()) continue;
    RopeDefaults defaults{.theta = 1e6, .layer_type = "full_attention"};
    if (is_sliding)
      defaults = {
          .theta = 10000, .theta_key = "rope_local_base_freq", .scaling_key = "", .layer_type = "sliding_attention"};
    family.ropes.push_back(read_rope(config, head_dim, positions, defaults));
  }
  for (const bool is_sliding : sliding) family.layer_ropes.emplace_back(is_sliding ? 0 : family.ropes.size() - 1);
  return build_llama_family(config, family);
}

}  // namespace nibble::models
