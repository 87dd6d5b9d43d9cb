// What Llama, Mistral and Qwen share: RMSNorm, rotary grouped-query attention, a gated MLP.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "models/config_reader.h"
#include "models/spec.h"

namespace nibble::models {

/// How a member differs from the others.
struct LlamaFamily {
  std::string name;  // "Llama": LlamaForCausalLM, LlamaDecoderLayer, ...
  bool has_qkv_bias = false;
  bool has_out_bias = false;
  bool has_mlp_bias = false;
  bool has_qk_norm = false;
  std::optional<int64_t> default_kv_heads = {};  // nullopt: as many as heads
  std::optional<int64_t> default_head_dim = {};  // nullopt: hidden_size / heads
  int64_t default_max_positions = 2048;
  std::vector<int64_t> windows = {};  // sliding window of each layer, 0: none; empty: none anywhere
};

ModelSpec build_llama_family(const ConfigReader& config, const LlamaFamily& family);

/// Qwen's windows: use_sliding_window, sliding_window, and layer_types or max_window_layers.
std::vector<int64_t> read_qwen_windows(const ConfigReader& config);

}  // namespace nibble::models
