// Configs of Llama's relatives: what is refused, and the keys of older files.
#include "models/llama_family.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "models/decoder.h"
#include "models/registry.h"

namespace nibble::models {
namespace {

const std::filesystem::path kModels = std::filesystem::path(NIBBLE_TEST_DATA) / "models";

/// A tiny model's config with keys changed: JSON texts, null to remove a key.
Json changed(const std::string& model, const Json& changes) {
  Json config = read_json(kModels / model / "config.json");
  for (const auto& [key, value] : changes.items()) {
    if (value == "REMOVED")
      config.erase(key);
    else
      config[key] = value;
  }
  return config;
}

struct Refusal {
  const char* model;
  const char* changes;
  const char* key;  // and what was found, as the message has them
  const char* found;
};

TEST(LlamaFamily, RefusesWithKeyFoundAndExpected) {
  const Refusal cases[] = {
      {"gemma", R"({"use_bidirectional_attention": true})", "use_bidirectional_attention", "true"},
      {"gemma", R"({"hidden_activation": "relu"})", "hidden_activation", "relu"},
      {"gemma", R"({"head_dim": 3})", "head_dim", "3 rotating dimensions"},
      {"gemma", R"({"num_key_value_heads": 3})", "num_key_value_heads", "3"},
      {"gemma2", R"({"sliding_window": null})", "sliding_window", "null"},
      {"gemma2", R"({"layer_types": ["sliding_attention"]})", "layer_types", "1 entries"},
      {"gemma2", R"({"layer_types": "sliding_attention"})", "layer_types", "string"},
      {"gemma2", R"({"layer_types": ["full_attention", "chunked_attention"]})", "layer_types", "chunked_attention"},
      {"gemma2", R"({"attn_logit_softcapping": -50})", "attn_logit_softcapping", "-50"},
      {"gemma2", R"({"query_pre_attn_scalar": 0})", "query_pre_attn_scalar", "0"},
      {"gemma2", R"({"hidden_activation": "sparkle"})", "hidden_activation", "sparkle"},
      {"gemma3", R"({"rope_parameters": {"rope_type": "linear", "factor": 2}})", "rope_parameters",
       "one for all layers"},
      {"gemma3", R"({"rope_scaling": {"rope_type": "spiral"}})", "rope_type", "spiral"},
      {"gemma3", R"({"layer_types": "REMOVED", "sliding_window_pattern": 0})", "sliding_window_pattern", "0"},
      {"phi3", R"({"rope_parameters": {"rope_type": "linear", "factor": 2}})", "rope_type", "linear"},
      {"phi3", R"({"rope_parameters": {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}})",
       "short_factor", "1 numbers"},
      {"phi3", R"({"original_max_position_embeddings": 0})", "original_max_position_embeddings", "0"},
      {"smollm3", R"({"no_rope_layers": [1]})", "no_rope_layers", "1 entries"},
      {"smollm3", R"({"no_rope_layers": [1, 2, 0]})", "no_rope_layers", "2"},
      {"smollm3", R"({"no_rope_layers": "REMOVED", "no_rope_layer_interval": 0})", "no_rope_layer_interval", "0"},
      {"smollm3-window", R"({"sliding_window": null})", "sliding_window", "null"},
      {"mixtral", R"({"num_local_experts": 0})", "num_local_experts", "0"},
      {"mixtral", R"({"num_experts_per_tok": 5})", "num_experts_per_tok", "5"},
      {"mixtral", R"({"sliding_window": 0})", "sliding_window", "0"},
      {"olmo2", R"({"rms_norm_eps": -1})", "rms_norm_eps", "-1"},
  };
  for (const Refusal& c : cases) {
    SCOPED_TRACE(std::string(c.model) + " " + c.changes);
    try {
      build_spec(changed(c.model, parse_json(c.changes, "changes")), "here/config.json");
      ADD_FAILURE() << "was accepted";
    } catch (const Error& error) {
      const std::string what = error.what();
      EXPECT_NE(what.find("here/config.json: key '" + std::string(c.key) + "'"), std::string::npos) << what;
      EXPECT_NE(what.find(c.found, std::min(what.find("found "), what.size())), std::string::npos) << what;
      EXPECT_NE(what.find("expected"), std::string::npos) << what;
    }
  }
}

/// What the older keys decide.
std::string described(const ModelSpec& spec) {
  std::string text = fmt::format("tied {} scale {} cap {} renewal {}", spec.tied.size(), spec.embed_scale,
                                 spec.logit_softcap, spec.renewal_length);
  for (const nn::RopeSpec& rope : spec.ropes)
    text += fmt::format(" rope {} {} {} {} {} {}", static_cast<int>(rope.kind), rope.theta, rope.rotary_dim,
                        rope.factor, rope.attention_factor, rope.original_max_position_embeddings);
  for (const LayerSpec& layer : spec.layers)
    text += fmt::format(" layer {} {} {} {} {}", layer.attention.window,
                        layer.attention.rope ? static_cast<int>(*layer.attention.rope) : -1, layer.attention.scale,
                        layer.attention.softcap, static_cast<int>(layer.mlp.activation));
  return text;
}

TEST(LlamaFamily, OlderKeysGiveTheSameModel) {
  const std::pair<const char*, const char*> cases[] = {
      {"gemma", R"({"rope_parameters": "REMOVED", "hidden_act": "gelu", "hidden_activation": null})"},
      {"gemma",
       R"({"hidden_act": "REMOVED", "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": "REMOVED"})"},
      {"gemma2", R"({"rope_parameters": "REMOVED", "rope_theta": 10000.0, "layer_types": "REMOVED",
                     "hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid"})"},
      {"gemma3", R"({"rope_parameters": "REMOVED", "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                     "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "layer_types": "REMOVED",
                     "sliding_window_pattern": 2})"},
      {"gemma3", R"({"rope_parameters": "REMOVED", "rope_scaling": {"factor": 8.0, "type": "linear"}})"},
      {"phi3-longrope", R"({"rope_parameters": "REMOVED", "partial_rotary_factor": 0.75, "rope_theta": 10000.0,
                            "rope_scaling": {"type": "su", "short_factor": [1.0, 1.05, 1.1, 1.2, 1.4, 1.8],
                                             "long_factor": [1.1, 1.5, 2.0, 3.0, 5.0, 8.0]}})"},
      {"phi3", R"({"rope_parameters": "REMOVED", "rope_scaling": null, "rope_theta": 10000.0})"},
      {"smollm3", R"({"rope_parameters": "REMOVED", "rope_theta": 10000.0, "layer_types": "REMOVED"})"},
      {"smollm3-window", R"({"no_rope_layers": "REMOVED", "layer_types": "REMOVED"})"},
      {"mixtral", R"({"rope_parameters": "REMOVED", "rope_theta": 10000.0})"},
      {"olmo2", R"({"rope_parameters": "REMOVED", "rope_scaling": null})"},
  };
  for (const auto& [model, changes] : cases) {
    SCOPED_TRACE(std::string(model) + " " + changes);
    const Json now = read_json(kModels / model / "config.json");
    const Json older = changed(model, parse_json(changes, "changes"));
    EXPECT_EQ(described(build_spec(now, "now")), described(build_spec(older, "older")));
  }
}

TEST(LlamaFamily, NullTurnsSoftCapsOff) {
  const ModelSpec spec = build_spec(
      changed("gemma2", parse_json(R"({"attn_logit_softcapping": null, "final_logit_softcapping": null})", "changes")),
      "config");
  EXPECT_EQ(spec.layers[0].attention.softcap, 0);
  EXPECT_EQ(spec.logit_softcap, 0);
  const ModelSpec usual = build_spec(
      changed("gemma2",
              parse_json(R"({"attn_logit_softcapping": "REMOVED", "final_logit_softcapping": "REMOVED"})", "changes")),
      "config");
  EXPECT_EQ(usual.layers[0].attention.softcap, 50);
  EXPECT_EQ(usual.logit_softcap, 30);
}

TEST(LlamaFamily, EmbeddingScaleHasTheWeightsPrecision) {
  LoadOptions options;
  options.threads = 1;
  options.dtype = DType::f32;
  EXPECT_EQ(load_decoder(kModels / "gemma", options)->spec().embed_scale, std::sqrt(60.0f));
  options.dtype = DType::bf16;
  EXPECT_EQ(load_decoder(kModels / "gemma", options)->spec().embed_scale, 7.75f);
}

/// Layers of a quantized checkpoint that are stored plain, as transformers 5 writes Mixtral's experts, stay as they
/// are.
TEST(LlamaFamily, PlainWeightsOfAQuantizedCheckpointStayPlain) {
  Json config = read_json(kModels / "mixtral" / "config.json");
  config["quantization_config"] = parse_json(R"({"quant_method": "bitsandbytes", "load_in_4bit": true})", "config");
  const auto decoder = load_decoder(config, "config", Checkpoint::open(kModels / "mixtral"), {});
  EXPECT_EQ(decoder->summary().tree.find("Linear4bit"), std::string::npos);
}

}  // namespace
}  // namespace nibble::models
