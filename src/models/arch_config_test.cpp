// Configurations of each architecture: older names of keys, what is refused and how, checkpoints as published.
#include <gtest/gtest.h>

#include <filesystem>

#include "base/folder_case.h"
#include "base/output.h"
#include "models/convert_weights.h"
#include "models/decoder.h"
#include "models/registry.h"
#include "models/summary.h"
#include "models/tiny_models.h"

namespace nibble::models {
namespace {

namespace fs = std::filesystem;
const fs::path kModels = fs::path(NIBBLE_TEST_DATA) / "models";

Json config_of(const std::string& model) { return read_json(kModels / model / "config.json"); }

struct RefusedCase {
  const char* model;
  const char* key;  // "attn_config/clip_qkv": inside an object
  const char* value;
  const char* expected;  // part of the message
};

/// Every message must name the source, the key, and what was expected.
void check_refused(const RefusedCase& refused) {
  SCOPED_TRACE(std::string(refused.model) + " " + refused.key + " " + refused.value);
  Json config = config_of(refused.model);
  const std::string path = refused.key;
  config[Json::json_pointer("/" + path)] = parse_json(refused.value, "value");
  try {
    build_spec(config, "here/config.json");
    FAIL();
  } catch (const Error& error) {
    const std::string what = error.what(), key = path.substr(path.find('/') + 1);
    EXPECT_NE(what.find("here/config.json"), std::string::npos) << what;
    EXPECT_NE(what.find("'" + key + "'"), std::string::npos) << what;
    EXPECT_NE(what.find(refused.expected), std::string::npos) << what;
  }
}

TEST(ArchConfig, RefusesWhatItCannotRun) {
  for (const RefusedCase& refused : {
           RefusedCase{"gptj", "rotary_dim", "null", "an even number from 2"},
           RefusedCase{"gptj", "rotary_dim", "7", "an even number from 2"},
           RefusedCase{"gptj", "rotary_dim", "32", "the size of a head (16)"},
           RefusedCase{"gptj", "rotary", "false", "expected true"},
           RefusedCase{"gptj", "activation_function", "\"sparkle\"", "a known activation"},
           RefusedCase{"gpt-neo", "attention_types", "[[[\"global\"], 3]]", "num_layers (2)"},
           RefusedCase{"gpt-neo", "attention_types", "[[[\"global\", \"wide\"], 1]]", "global or local"},
           RefusedCase{"gpt-neo", "attention_types", "[[[\"global\"], 9000000000000000000]]", "num_layers (2)"},
           RefusedCase{"gpt-neo", "attention_types", "[[[], 9000000000000000000]]", "found 0 layers"},
           RefusedCase{"gpt-neo", "attention_types", "[\"global\", \"local\"]", "unexpected value"},
           RefusedCase{"gpt-neo", "attention_layers", "[\"local\", \"global\"]", "[\"global\",\"local\"]"},
           RefusedCase{"gpt-neo", "window_size", "0", "a whole number from 1"},
           RefusedCase{"gpt-neo", "max_position_embeddings", "2147483648", "a whole number from 1"},
           RefusedCase{"phi", "num_key_value_heads", "3", "a divisor of the attention heads (4)"},
           RefusedCase{"phi", "head_dim", "32", "expected 16"},
           RefusedCase{"falcon-40b", "num_kv_heads", "3", "a divisor of the attention heads (8)"},
           RefusedCase{"falcon-40b", "parallel_attn", "false", "expected true"},
           RefusedCase{"falcon-40b", "num_ln_in_parallel_attn", "3", "from 1 to 2"},
           RefusedCase{"falcon-40b", "rope_parameters/partial_rotary_factor", "0.5", "expected 1"},
           RefusedCase{"falcon-7b", "num_ln_in_parallel_attn", "2", "expected 1"},
           RefusedCase{"falcon-rw", "num_kv_heads", "2", "expected 6"},
           RefusedCase{"mpt", "attn_config/alibi", "false", "expected true"},
           RefusedCase{"mpt", "attn_config/alibi_bias_max", "16", "expected 8"},
           RefusedCase{"mpt", "attn_config/attn_type", "\"multiquery_attention\"", "multihead_attention"},
           RefusedCase{"mpt", "attn_config/clip_qkv", "6", "found 6"},
           RefusedCase{"mpt", "attn_config/prefix_lm", "true", "expected false"},
           RefusedCase{"mpt", "attn_config/qk_ln", "true", "expected false"},
           RefusedCase{"mpt", "attn_config/attn_uses_sequence_id", "true", "expected false"},
           RefusedCase{"mpt", "expansion_ratio", "2", "expected 4"},
           RefusedCase{"mpt", "no_bias", "false", "expected true"},
           RefusedCase{"mpt", "logit_scale", "\"inv_sqrt_d_model\"", "expected null"},
           RefusedCase{"mpt", "norm_type", "\"rmsnorm\"", "low_precision_layernorm"},
           RefusedCase{"stablelm", "num_key_value_heads", "5", "a divisor of the attention heads (4)"},
           RefusedCase{"stablelm", "head_dim", "8", "expected 16"},
           RefusedCase{"starcoder2", "norm_type", "\"rms_norm\"", "layer_norm"},
           RefusedCase{"starcoder2", "mlp_type", "\"gated\"", "default"},
           RefusedCase{"starcoder2", "sliding_window", "0", "a whole number from 1"},
           RefusedCase{"starcoder2", "partial_rotary_factor", "0.5", "expected 1"},
           RefusedCase{"gpt-bigcode", "add_cross_attention", "true", "expected false"},
           RefusedCase{"gpt-bigcode", "multi_query", "\"yes\"", "unexpected value"},
       })
    check_refused(refused);
}

struct RenamedCase {
  const char* model;
  std::vector<std::pair<std::string, std::string>> keys;  // (ours, theirs); "" removes the key
};

TEST(ArchConfig, OlderNamesOfKeysMeanTheSame) {
  const std::vector<std::pair<std::string, std::string>> gpt2_names{{"n_embd", "hidden_size"},
                                                                    {"n_layer", "num_hidden_layers"},
                                                                    {"n_head", "num_attention_heads"},
                                                                    {"n_positions", "max_position_embeddings"}};
  for (const RenamedCase& renamed : {
           RenamedCase{"gptj", gpt2_names},
           RenamedCase{"gpt-bigcode", gpt2_names},
           RenamedCase{"gpt-neo", {{"num_layers", "num_hidden_layers"}, {"num_heads", "num_attention_heads"}}},
           RenamedCase{"gpt-neo", {{"attention_types", ""}}},  // attention_layers say the same
           RenamedCase{"gpt-neo", {{"attention_layers", ""}}},
           RenamedCase{"falcon-7b", {{"hidden_size", "n_embed"}, {"new_decoder_architecture", ""}, {"alibi", ""}}},
           RenamedCase{"mpt", {{"d_model", "hidden_size"}, {"n_layers", "num_hidden_layers"}}},
           RenamedCase{"mpt", {{"attn_config", ""}}},
       }) {
    SCOPED_TRACE(renamed.model);
    const Json config = config_of(renamed.model);
    Json other = config;
    for (const auto& [ours, theirs] : renamed.keys) {
      if (!theirs.empty() && other.contains(ours)) other[theirs] = other[ours];
      other.erase(ours);
    }
    const ModelSummary a = summarize(config, "ours", {}, std::nullopt),
                       b = summarize(other, "theirs", {}, std::nullopt);
    EXPECT_EQ(a.tree, b.tree);
    EXPECT_EQ(a.memory_footprint_bytes, b.memory_footprint_bytes);
    const ModelSpec ours = build_spec(config, "ours"), theirs = build_spec(other, "theirs");
    EXPECT_EQ(ours.layers.back().attention.window, theirs.layers.back().attention.window);
    EXPECT_EQ(ours.max_position_embeddings, theirs.max_position_embeddings);
  }
}

TEST(ArchConfig, PartialRotationUnderItsOlderKeys) {
  for (const char* model : {"phi", "stablelm"}) {
    Json config = config_of(model);
    const ModelSpec expected = build_spec(config, model);
    config["partial_rotary_factor"] = config["rope_parameters"]["partial_rotary_factor"];
    config["rope_theta"] = 25000.0;
    config.erase("rope_parameters");
    const ModelSpec found = build_spec(config, model);
    EXPECT_EQ(found.ropes[0].rotary_dim, expected.ropes[0].rotary_dim) << model;
    EXPECT_EQ(found.ropes[0].theta, 25000.0) << model;
  }
}

TEST(ArchConfig, MptAsPublishedNamesItselfInCapitals) {
  Json config = config_of("mpt");
  config["architectures"] = {"MPTForCausalLM"};
  EXPECT_EQ(build_spec(config, "mpt").architecture, "MptForCausalLM");
}

TEST(ArchConfig, FalconComputesAlibiInBf16) {
  const ModelSpec spec = build_spec(config_of("falcon-rw"), "falcon-rw");
  EXPECT_EQ(spec.alibi.dtype, DType::bf16);
  ASSERT_EQ(spec.alibi.slopes.size(), 6u);
  EXPECT_EQ(spec.alibi.slopes[4], 0.5f);
  EXPECT_EQ(spec.alibi.scale, spec.layers[0].attention.scale);
}

struct Leftover {
  const char* model;
  std::vector<std::string> names;
};

/// The published files lack the base prefix or carry masks and angles.
TEST(ArchLoad, PublishedNamesAndLeftoversAreUnderstood) {
  for (const Leftover& leftover : {Leftover{"gptj", {"h.0.attn.bias", "h.0.attn.masked_bias"}},
                                   Leftover{"gpt-neo", {"h.0.attn.attention.bias", "h.1.attn.attention.masked_bias"}},
                                   Leftover{"gpt-bigcode", {"h.1.attn.bias", "transformer.bias"}},
                                   Leftover{"falcon-7b", {"h.0.self_attention.maybe_rotary.inv_freq"}},
                                   Leftover{"phi", {"layers.0.self_attn.rotary_emb.inv_freq"}},
                                   Leftover{"stablelm", {"layers.0.self_attn.rotary_emb.inv_freq"}},
                                   Leftover{"starcoder2", {"layers.0.self_attn.rotary_emb.inv_freq"}}}) {
    SCOPED_TRACE(leftover.model);
    const Scratch scratch;
    const fs::path& folder = scratch.path;
    const auto original = Checkpoint::open(kModels / leftover.model);
    const std::string prefix = build_spec(config_of(leftover.model), "config").base_prefix;
    std::vector<PlannedTensor> plan;
    for (const TensorInfo& info : original->tensors()) {
      const bool has_prefix = info.name.starts_with(prefix);
      plan.push_back({has_prefix ? info.name.substr(prefix.size()) : info.name, info.dtype, info.shape});
    }
    for (const std::string& name : leftover.names) plan.push_back({name, DType::f32, {2, 2}});
    SafetensorsWriter writer(folder, plan, int64_t{1} << 30);
    size_t i = 0;
    for (const TensorInfo& info : original->tensors()) writer.write(plan[i++].name, original->get(info.name).bytes());
    for (const std::string& name : leftover.names) writer.write(name, Tensor(DType::f32, {2, 2}).bytes());
    writer.finish();
    std::string warned;
    LoadOptions options;
    options.warning = [&](std::string_view text) { warned += text; };
    const auto decoder = load_decoder(config_of(leftover.model), "config", Checkpoint::open(folder), options);
    EXPECT_EQ(warned, "");
    const std::string& embed = decoder->spec().embed + ".weight";
    const Tensor& found = decoder->weights().dense(embed);
    const Tensor stored = original->get(embed);
    EXPECT_TRUE(std::equal(found.bytes().begin(), found.bytes().end(), stored.bytes().begin(), stored.bytes().end()));
  }
}

}  // namespace
}  // namespace nibble::models
