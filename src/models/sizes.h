// What nearly every decoder's config says, and the parts of a spec that follow from it.
#pragma once

#include <string>
#include <string_view>

#include "models/config_reader.h"
#include "models/spec.h"

namespace nibble::models {

struct SizeKeys {
  std::string_view hidden = "hidden_size", layers = "num_hidden_layers", heads = "num_attention_heads";
};

struct Sizes {
  int64_t hidden, layers, heads, head_dim, vocab;
};

/// head_dim is hidden / heads. Errors: corrupt_file for a key that is missing or out of range, or no whole head_dim.
Sizes read_sizes(const ConfigReader& config, const SizeKeys& keys = {});

/// The sizes, the prefixes "BASE." and "BASE.LAYERS.", and a head that is tied if tie_word_embeddings says so.
ModelSpec start_spec(const ConfigReader& config, std::string_view architecture, const Sizes& sizes,
                     const std::string& base, const std::string& layers, const std::string& embed,
                     bool is_tied_by_default);

/// `key`, a divisor of the heads.
int64_t read_kv_heads(const ConfigReader& config, std::string_view key, int64_t heads, int64_t fallback);

/// The rotary_emb of a model, with the buffers that transformers counts.
ModuleSpec rotary_embedding(std::string_view class_name, const nn::RopeSpec& rope);
/// pad_token_id, the row of the embedding that torch prints.
std::optional<int64_t> read_pad(const ConfigReader& config, const Sizes& sizes);

NormSpec layer_norm_of(std::string module, double eps);
/// heads, as many kv_heads, head_dim and the usual scale.
AttentionSpec attention_of(const Sizes& sizes);
/// The same with the modules PREFIXq_proj, PREFIXk_proj, PREFIXv_proj and PREFIXOUT.
AttentionSpec attention_of(const Sizes& sizes, const std::string& prefix, const std::string& out);
/// down(act(up x)).
MlpSpec mlp_of(std::string up, std::string down, kernels::Activation activation, int64_t width);

}  // namespace nibble::models
