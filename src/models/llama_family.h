// What Llama, Mistral and Qwen share: RMSNorm, rotary grouped-query attention, a gated MLP.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "models/config_reader.h"
#include "models/rope_config.h"
#include "models/spec.h"

namespace nibble::models {

/// Of q and k: over each head, or over all heads at once.
enum class QkNorm : uint8_t { none, head, width };
/// Around a block: of what it reads, of what it adds, or of both.
enum class NormPlace : uint8_t { before, after, both };

/// How a member differs from the others.
struct LlamaFamily {
  std::string name;  // "Llama": LlamaForCausalLM, LlamaDecoderLayer, ...
  bool has_qkv_bias = false;
  bool has_out_bias = false;
  bool has_mlp_bias = false;
  QkNorm qk_norm = QkNorm::none;
  NormPlace norms = NormPlace::before;
  float norm_offset = 0;  // of the norms' weights
  double default_eps = 1e-6;
  bool has_scaled_embedding = false;  // by the root of the hidden size
  bool is_tied_by_default = false;
  std::string_view model_class = "Model";  // after the name
  std::string_view activation_key = "hidden_act", default_activation = "silu";
  std::optional<int64_t> default_kv_heads = {};  // nullopt: as many as heads
  std::optional<int64_t> default_head_dim = {};  // nullopt: hidden_size / heads
  int64_t default_max_positions = 2048;
  std::vector<int64_t> windows = {};  // sliding window of each layer, 0: none; empty: none anywhere
  double default_theta = 10000;
  int64_t default_original_positions = 0;   // as in RopeDefaults
  std::optional<int64_t> default_pad = {};  // of embed_tokens, for a config without the key
  std::vector<nn::RopeSpec> ropes = {};     // empty: the config's
  /// Index into the ropes for each layer, nullopt: no rotation; empty: the first everywhere.
  std::vector<std::optional<size_t>> layer_ropes = {};
  std::optional<double> query_scalar = {};  // scores are divided by its root; nullopt: head_dim
  double softcap = 0, logit_softcap = 0;    // 0: none
  /// Last word on layer `index` and its tree, whose first children are self_attn and mlp.
  std::function<void(int64_t index, LayerSpec& layer, ModuleSpec& tree)> change_layer = {};
};

ModelSpec build_llama_family(const ConfigReader& config, const LlamaFamily& family);

/// Which layers have a sliding window: by layer_types, or by `is_sliding` of the layer's number without that key.
std::vector<bool> read_sliding_layers(const ConfigReader& config, const std::function<bool(int64_t)>& is_sliding);
/// A number that null turns off: 0 then, `fallback` if the key is missing.
double read_softcap(const ConfigReader& config, std::string_view key, double fallback);
/// The windows of layers that are sliding. A missing sliding_window is `fallback`; errors: null, if any layer slides.
std::vector<int64_t> read_windows(const ConfigReader& config, const std::vector<bool>& sliding, int64_t fallback);

/// Qwen's windows: use_sliding_window, sliding_window, and layer_types or max_window_layers.
std::vector<int64_t> read_qwen_windows(const ConfigReader& config);

}  // namespace nibble::models
