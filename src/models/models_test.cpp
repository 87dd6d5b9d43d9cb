// Trees, footprints and skip rules against transformers; configs that must be refused; checkpoints written and read
// back.
#include <gtest/gtest.h>

#include <cmath>
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

Json llama_config() { return read_json(kModels / "llama" / "config.json"); }

BitsAndBytesConfig quantization(const std::string& key) {
  BitsAndBytesConfig config;
  config.load_in_4bit = key.starts_with("4bit");
  config.load_in_8bit = key == "8bit";
  if (key == "4bit_skip")
    config.llm_int8_skip_modules = {{"lm_head", "model.layers.1", "up_proj", R"(model\.layers\..\.self_attn\.k_proj)"}};
  return config;
}

TEST(Summary, TreeFootprintAndParametersAsTransformers) {
  const auto names = testing::tiny_models("expected.json");
  ASSERT_GE(names.size(), 20u);
  for (const std::string& name : names) {
    const Json expected = read_json(kModels / name / "expected.json");
    const Json config = read_json(kModels / name / "config.json");
    for (const std::string key : {"float", "4bit", "8bit", "4bit_skip"}) {
      SCOPED_TRACE(name + " " + key);
      const ModelSummary summary = summarize(config, name, quantization(key), std::nullopt);
      EXPECT_EQ(summary.tree, expected[key]["tree"].get<std::string>());
      EXPECT_EQ(summary.memory_footprint_bytes, expected[key]["memory_footprint_bytes"].get<int64_t>());
      EXPECT_EQ(summary.num_parameters, expected[key]["num_parameters"].get<int64_t>());
    }
    if (expected.contains("skipped_modules")) {
      EXPECT_EQ(default_skipped_modules(build_spec(config, name)),
                expected["skipped_modules"].get<std::vector<std::string>>())
          << name;
    }
  }
}

TEST(Summary, WhatStaysInFloat32CountsAsSuch) {
  for (const std::string name : {"t5", "t5-gated"}) {
    const Json expected = read_json(kModels / name / "expected.json")["dtypes"];
    const Json config = read_json(kModels / name / "config.json");
    for (const DType dtype : {DType::f16, DType::bf16, DType::f32})
      for (const std::string key : {"float", "4bit", "8bit"})
        EXPECT_EQ(summarize(config, name, quantization(key), dtype).memory_footprint_bytes,
                  expected[std::string(name_of(dtype))][key].get<int64_t>())
            << name << " " << name_of(dtype) << " " << key;
  }
}

TEST(Config, T5IsRefusedWithTheKeysName) {
  for (const auto& [key, value] :
       std::initializer_list<std::pair<const char*, Json>>{{"d_model", 0},
                                                           {"d_kv", "x"},
                                                           {"num_heads", -1},
                                                           {"feed_forward_proj", "gated-sparkle"},
                                                           {"relative_attention_num_buckets", 2},
                                                           {"relative_attention_max_distance", 16},
                                                           {"is_encoder_decoder", false},
                                                           {"num_decoder_layers", 0}}) {
    Json config = read_json(kModels / "t5" / "config.json");
    config[key] = value;
    try {
      build_spec(config, "here/config.json");
      ADD_FAILURE() << key;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(key), std::string::npos) << error.what();
    }
  }
}

TEST(Summary, DefaultSkippedModules) {
  EXPECT_EQ(default_skipped_modules(build_spec(llama_config(), "config")),
            (std::vector<std::string>{"lm_head", "model.embed_tokens"}));
}

TEST(Quantization, SkipEntriesMatchAsInTransformers) {
  EXPECT_TRUE(is_skipped("model.layers.1.mlp.up_proj", {"model.layers.1"}));
  EXPECT_FALSE(is_skipped("model.layers.11.mlp.up_proj", {"model.layers.1"}));
  EXPECT_TRUE(is_skipped("model.layers.11.mlp.up_proj", {"up_proj"}));
  EXPECT_TRUE(is_skipped("model.layers.11.mlp.up_proj", {"proj"}));
  EXPECT_FALSE(is_skipped("model.layers.11.mlp.up_proj", {"mlp"}));
  EXPECT_TRUE(is_skipped("model.layers.11.mlp.up_proj", {"model.layers.*"}));
  EXPECT_FALSE(is_skipped("mlp.gate_proj", {"mlp.gate"}));
  EXPECT_FALSE(is_skipped("lm_head", {}));
  EXPECT_THROW(is_skipped("lm_head", {"(("}), Error);
}

struct BadConfig {
  const char* key;
  const char* value;  // JSON; empty: the key is removed
};

TEST(Config, RefusedWithTheKeysName) {
  for (const BadConfig& bad :
       {BadConfig{"hidden_size", ""}, BadConfig{"hidden_size", "0"}, BadConfig{"hidden_size", "-64"},
        BadConfig{"hidden_size", "\"64\""}, BadConfig{"hidden_size", "1e30"},
        BadConfig{"hidden_size", "9223372036854775807"}, BadConfig{"num_hidden_layers", "1000000000"},
        BadConfig{"num_key_value_heads", "3"}, BadConfig{"num_attention_heads", "0"}, BadConfig{"vocab_size", "[1]"},
        BadConfig{"rms_norm_eps", "-1"}, BadConfig{"head_dim", "15"}, BadConfig{"hidden_act", "\"sparkle\""},
        BadConfig{"tie_word_embeddings", "\"yes\""}, BadConfig{"pad_token_id", "160"}, BadConfig{"architectures", "[]"},
        BadConfig{"architectures", "[\"BertModel\"]"}, BadConfig{"architectures", ""},
        BadConfig{"rope_parameters", "7"}}) {
    Json config = llama_config();
    if (*bad.value)
      config[bad.key] = parse_json(bad.value, "value");
    else
      config.erase(bad.key);
    try {
      build_spec(config, "here/config.json");
      FAIL() << bad.key << " " << bad.value;
    } catch (const Error& error) {
      const std::string what = error.what();
      EXPECT_NE(what.find("here/config.json"), std::string::npos) << what;
      const bool names_key = what.find(bad.key) != std::string::npos || what.find("BertModel") != std::string::npos;
      EXPECT_TRUE(names_key) << what;
      EXPECT_TRUE(error.code() == ErrorCode::corrupt_file || error.code() == ErrorCode::unsupported);
    }
  }
}

TEST(Config, RopeTypesAreChecked) {
  for (const char* rope :
       {R"({"rope_type": "spiral"})", R"({"rope_type": "linear"})", R"({"rope_type": "linear", "factor": 0})",
        R"({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4})",
        R"({"rope_type": "longrope", "factor": 8})",
        R"({"rope_type": "longrope", "factor": 8, "short_factor": [1], "long_factor": [1]})"}) {
    Json config = llama_config();
    config["rope_parameters"] = parse_json(rope, "rope");
    EXPECT_THROW(build_spec(config, "config"), Error) << rope;
  }
  Json old = llama_config();  // the names of transformers 4
  old.erase("rope_parameters");
  old["rope_theta"] = 500000.0;
  old["rope_scaling"] = parse_json(R"({"type": "linear", "factor": 2.0})", "rope");
  const ModelSpec spec = build_spec(old, "config");
  EXPECT_EQ(spec.ropes[0].theta, 500000.0);
  EXPECT_EQ(spec.ropes[0].kind, nn::RopeKind::linear);
}

TEST(Load, NamesTheTensorThatIsMissingOrMisshapen) {
  const auto checkpoint = Checkpoint::open(kModels / "llama");
  Json wide = llama_config();
  wide["intermediate_size"] = 80;
  Json deep = llama_config();
  deep["num_hidden_layers"] = 3;
  Json untied = llama_config();
  untied["tie_word_embeddings"] = false;
  const std::pair<Json, const char*> cases[] = {
      {wide, "[72, 64]"}, {deep, "model.layers.2."}, {untied, "lm_head.weight"}};
  for (const auto& [config, expected] : cases) {
    try {
      load_decoder(config, "config", checkpoint, {});
      FAIL() << expected;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(expected), std::string::npos) << error.what();
      EXPECT_EQ(error.code(), ErrorCode::corrupt_file);
    }
  }
}

std::vector<float> logits_of(const Decoder& decoder, std::vector<int32_t> ids) {
  nn::KvCache cache = decoder.make_cache();
  cache.reserve(static_cast<int64_t>(ids.size()));
  const auto count = static_cast<int64_t>(ids.size());
  std::vector<float> logits(ids.size() * static_cast<size_t>(decoder.vocab_size()));
  Workspace workspace(decoder.backend());
  const SequenceTokens sequence{&cache, count, count};
  decoder.forward({&sequence, 1}, ids.data(), workspace, logits.data(), true, false);
  return logits;
}

TEST(Updates, ThoseThatFailLeaveThoseBefore) {
  const auto decoder = load_decoder(kModels / "llama", {.dtype = DType::f32, .threads = 2});
  const std::string module = "model.layers.0.self_attn.q_proj";
  const Shape shape = decoder->weights().dense(module + ".weight").shape();
  const auto updates_of = [&](float value) {
    auto updates = std::make_shared<Updates>();
    nn::LowRank update{.a = Tensor(DType::f32, {1, shape[1]}), .b = Tensor(DType::f32, {shape[0], 1})};
    std::fill_n(update.a.as<float>(), shape[1], value);
    std::fill_n(update.b.as<float>(), shape[0], 1.0f);
    updates->layers[module] = update;
    return updates;
  };
  const std::vector<int32_t> ids{5, 17, 100, 31};
  const auto plain = logits_of(*decoder, ids);
  decoder->set_updates(updates_of(0.1f));  // the decoder alone holds them
  const auto updated = logits_of(*decoder, ids);
  EXPECT_NE(updated, plain);
  auto broken = updates_of(0.3f);
  broken->parameters["model.norm.weight"] = Tensor(DType::u8, {1});
  EXPECT_THROW(decoder->set_updates(broken), Error);
  broken.reset();
  EXPECT_EQ(logits_of(*decoder, ids), updated);
  decoder->set_updates(nullptr);
  EXPECT_EQ(logits_of(*decoder, ids), plain);
}

/// Quantizes a tiny model into `out`; returns the plan it used.
QuantizationPlan quantize_into(const fs::path& out, const std::string& model, const BitsAndBytesConfig& config,
                               DType dtype) {
  const Json json = read_json(kModels / model / "config.json");
  const ModelSpec spec = build_spec(json, model);
  const QuantizationPlan plan = plan_quantization(spec, config);
  const ops::Backend backend(2);
  SafetensorsWriter writer(out, plan_quantized(spec, plan, dtype), int64_t{1} << 30);
  EXPECT_EQ(write_quantized(spec, *Checkpoint::open(kModels / model), plan, dtype, backend, writer, {}),
            static_cast<int64_t>(plan.quantized.size()));
  writer.finish();
  write_file(out / "config.json", dump_json(quantized_config(json, spec, plan, dtype)));
  return plan;
}

const std::vector<int32_t> kIds{5, 17, 100, 31, 8, 64, 120, 9};

TEST(Convert, QuantizedFilesEqualQuantizingOnLoad) {
  for (const std::string model :
       {"llama", "llama-odd", "qwen2", "gpt2", "gpt-neox", "opt-350m", "gemma2", "phi3", "mixtral"}) {
    for (const bool is_int8 : {false, true}) {
      for (const bool has_quantized_head : {false, true}) {
        SCOPED_TRACE(model + (is_int8 ? " int8" : " nf4") + (has_quantized_head ? " with head" : ""));
        Scratch scratch;
        LoadOptions options;
        options.threads = 2;
        options.dtype = DType::f32;
        auto& config = options.quantization_config;
        (is_int8 ? config.load_in_8bit : config.load_in_4bit) = true;
        config.bnb_4bit_quant_type = "nf4";
        config.bnb_4bit_use_double_quant = true;
        if (has_quantized_head) config.llm_int8_skip_modules.emplace();
        quantize_into(scratch.path, model, config, DType::f32);
        const auto direct = load_decoder(kModels / model, options);
        const auto read_back = load_decoder(scratch.path, {});
        EXPECT_EQ(logits_of(*direct, kIds), logits_of(*read_back, kIds));
        EXPECT_EQ(direct->summary().tree, read_back->summary().tree);
        EXPECT_EQ(direct->summary().memory_footprint_bytes, read_back->summary().memory_footprint_bytes);
      }
    }
  }
}

TEST(Convert, SavingALoadedModelKeepsItsBytes) {
  for (const char* model : {"llama-nf4-dq", "llama-int8", "llama-bias"}) {
    SCOPED_TRACE(model);
    Scratch scratch;
    const auto decoder = load_decoder(kModels / model, {});
    SafetensorsWriter writer(scratch.path, plan_saved(decoder->spec(), decoder->weights()), int64_t{1} << 30);
    write_saved(decoder->spec(), decoder->weights(), decoder->backend(), writer);
    writer.finish();
    const auto theirs = Checkpoint::open(kModels / model), ours = Checkpoint::open(scratch.path);
    ASSERT_EQ(theirs->tensors().size(), ours->tensors().size());
    for (const TensorInfo& info : theirs->tensors()) {
      const Tensor a = theirs->get(info.name), b = ours->get(info.name);
      EXPECT_EQ(a.dtype(), b.dtype()) << info.name;
      EXPECT_EQ(a.shape(), b.shape()) << info.name;
      ASSERT_EQ(a.size_bytes(), b.size_bytes()) << info.name;
      EXPECT_TRUE(std::equal(a.bytes().begin(), a.bytes().end(), b.bytes().begin())) << info.name;
    }
  }
}

TEST(Convert, Int8DequantizedGivesTheLogitsOfTransformersWithSuchWeights) {
  for (const std::string model : {"llama", "llama-odd", "qwen2"}) {
    SCOPED_TRACE(model);
    Scratch scratch;
    const fs::path packed = scratch.path / "int8", plain = scratch.path / "plain";
    fs::create_directories(packed);
    fs::create_directories(plain);
    BitsAndBytesConfig config;
    config.load_in_8bit = true;
    quantize_into(packed, model, config, DType::f32);
    const Json json = read_json(packed / "config.json");
    const ModelSpec spec = build_spec(json, model);
    const ops::Backend backend(2);
    SafetensorsWriter writer(plain, plan_dequantized(spec, DType::f32), int64_t{1} << 30);
    EXPECT_EQ(write_dequantized(spec, spec, *Checkpoint::open(packed), DType::f32, backend, writer, {}), 14);
    writer.finish();
    write_file(plain / "config.json", dump_json(dequantized_config(json, DType::f32)));

    const auto goldens = Checkpoint::open(kModels / model / "goldens.safetensors");
    const Tensor prompt = goldens->get("prompt"), expected = goldens->get("logits_int8");
    const auto found = logits_of(*load_decoder(plain, {}), {prompt.as<int32_t>(), prompt.as<int32_t>() + 24});
    ASSERT_EQ(static_cast<int64_t>(found.size()), expected.count());
    float difference = 0, magnitude = 0;
    for (size_t i = 0; i < found.size(); ++i) {
      difference = std::max(difference, std::abs(found[i] - expected.as<float>()[i]));
      magnitude = std::max(magnitude, std::abs(expected.as<float>()[i]));
    }
    EXPECT_LT(difference / magnitude, 1e-4f);
  }
}

}  // namespace
}  // namespace nibble::models
