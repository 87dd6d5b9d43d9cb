// PEFT's target rules and files; adapters that do not fit.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "adapters/peft_files.h"
#include "base/error.h"
#include "base/folder_case.h"
#include "base/output.h"
#include "checkpoint/checkpoint.h"
#include "models/registry.h"

namespace nibble::adapters {
namespace {

namespace fs = std::filesystem;
const fs::path kModels = fs::path(NIBBLE_TEST_DATA) / "models", kTraining = fs::path(NIBBLE_TEST_DATA) / "training";

models::ModelSpec spec_of(const std::string& name) {
  return models::build_spec(read_json(kModels / name.substr(0, name.find('.')) / "config.json"), name);
}

/// Modules of the lora_A tensors that PEFT saved.
std::vector<std::string> modules_of_peft(const std::string& name) {
  const Adapter adapter = read_adapter(spec_of(name), kTraining / name);
  std::vector<std::string> modules;
  for (const AdapterLayer& layer : adapter.layers) modules.push_back(layer.module);
  return modules;
}

TEST(Targets, AsPeftChooses) {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(kTraining)) {
    const std::string name = entry.path().filename().string();
    SCOPED_TRACE(name);
    const models::ModelSpec spec = spec_of(name);
    const LoraConfig config = parse_lora_config(read_json(entry.path() / "adapter_config.json"), name);
    EXPECT_EQ(targeted_modules(spec, config), modules_of_peft(name));
    ++count;
  }
  EXPECT_GE(count, 9);
}

TEST(Targets, AllLinearLeavesTheHeadOut) {
  LoraConfig config;
  config.target_modules = "all-linear";
  const auto modules = targeted_modules(spec_of("llama"), config);
  EXPECT_EQ(modules.size(), 14u);
  config.layers_to_transform = {1};
  EXPECT_EQ(targeted_modules(spec_of("llama"), config).size(), 7u);
  config.exclude_modules = "model\\.layers\\.1\\.mlp\\..*";
  EXPECT_EQ(targeted_modules(spec_of("llama"), config).size(), 4u);
}

TEST(Targets, DefaultsAreQueryAndValueOrTheFusedProjection) {
  EXPECT_EQ(targeted_modules(spec_of("llama"), {}),
            (std::vector<std::string>{"model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj",
                                      "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"}));
  EXPECT_EQ(targeted_modules(spec_of("gpt2"), {}),
            (std::vector<std::string>{"transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"}));
}

TEST(Targets, WhatMatchesNothingIsNamed) {
  LoraConfig config;
  config.target_modules = std::vector<std::string>{"q_proj", "w_proj"};
  try {
    targeted_modules(spec_of("llama"), config);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("w_proj"), std::string::npos);
  }
  config.target_modules = "((";
  EXPECT_THROW(targeted_modules(spec_of("llama"), config), Error);
}

TEST(Adapter, PatternsAndLayersThatFitNothingAreNamed) {
  const auto fails = [](const LoraConfig& config, const char* part) {
    try {
      create_adapter(spec_of("llama"), config, 1);
      FAIL() << part;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  fails({.r = 4, .rank_pattern = {{"q_proj", 2}, {"w_proj", 2}}}, "rank_pattern: 'w_proj'");
  fails({.r = 4, .alpha_pattern = {{"up_proj", 2}}}, "alpha_pattern: 'up_proj'");  // q_proj and v_proj are the targets
  fails({.r = 4, .layers_to_transform = {0, 7}}, "layers_to_transform: layer 7");
  fails({.r = 4, .exclude_modules = "mlp\\..*"}, "exclude_modules: 'mlp\\..*'");
  using Names = std::vector<std::string>;
  fails({.r = 4, .exclude_modules = Names{"q_proj", "mlp"}}, "exclude_modules: 'mlp'");  // holds layers, is none
  EXPECT_EQ(create_adapter(spec_of("llama"), {.r = 4, .exclude_modules = Names{"lm_head", "k_proj"}}, 1).layers.size(),
            4u);
  EXPECT_EQ(
      create_adapter(spec_of("llama"), {.r = 4, .rank_pattern = {{"0.*q_proj", 2}}, .layers_to_transform = {0}}, 1)
          .layers.size(),
      2u);
}

TEST(Adapter, StartsAsTheConfigSays) {
  LoraConfig config;
  config.r = 16;
  const Adapter adapter = create_adapter(spec_of("llama"), config, 1);
  const nn::Lora& lora = adapter.layers[0].lora;
  EXPECT_EQ(lora.a->value.shape(), (Shape{16, 64}));
  double largest = 0;
  for (int64_t i = 0; i < lora.a->value.count(); ++i)
    largest = std::max(largest, std::abs(static_cast<double>(lora.a->value.as<float>()[i])));
  EXPECT_LE(largest, 0.125);
  EXPECT_GT(largest, 0.115);
  for (int64_t i = 0; i < lora.b->value.count(); ++i) EXPECT_EQ(lora.b->value.as<float>()[i], 0);
  EXPECT_EQ(lora.scale, 0.5f);
  EXPECT_EQ(trainable_parameters_text(create_adapter(spec_of("llama"), {.r = 4}, 1), 62784),
            "trainable params: 1,792 || all params: 64,576 || trainable%: 2.7750");
}

TEST(PeftFiles, WhatIsWrittenReadsBackAndNamesThePeftTensors) {
  for (const std::string name : {"llama", "llama-bias", "gpt2", "llama.dora", "opt.bias", "gpt2.dora"}) {
    SCOPED_TRACE(name);
    Scratch scratch;
    const models::ModelSpec spec = spec_of(name);
    const Adapter adapter = read_adapter(spec, kTraining / name);
    write_adapter(adapter, spec, name.substr(0, name.find('.')), scratch.path);
    const auto ours = Checkpoint::open(scratch.path / "adapter_model.safetensors"),
               theirs = Checkpoint::open(kTraining / name / "adapter_model.safetensors");
    ASSERT_EQ(ours->tensors().size(), theirs->tensors().size());
    for (const TensorInfo& info : theirs->tensors()) {
      ASSERT_NE(ours->find(info.name), nullptr) << info.name;
      const Tensor a = ours->get(info.name), b = theirs->get(info.name);
      EXPECT_TRUE(std::equal(a.bytes().begin(), a.bytes().end(), b.bytes().begin(), b.bytes().end())) << info.name;
    }
    const Json ours_json = read_json(scratch.path / "adapter_config.json"),
               theirs_json = read_json(kTraining / name / "adapter_config.json");
    for (const auto& item : ours_json.items()) {
      if (item.key() == "target_modules") continue;  // PEFT's order is that of a set
      EXPECT_EQ(item.value().dump(), theirs_json[item.key()].dump()) << item.key();
    }
    EXPECT_EQ(targeted_modules(spec, read_adapter(spec, scratch.path).config), targeted_modules(spec, adapter.config));
  }
}

/// Which PEFT refuses beside an expression or all-linear.
TEST(PeftFiles, LayersStandBesideListsAlone) {
  const models::ModelSpec spec = spec_of("llama");
  LoraConfig config{.r = 4, .target_modules = std::vector<std::string>{"q_proj"}, .layers_to_transform = {1}};
  EXPECT_EQ(lora_config_json(config, spec, "base")["layers_to_transform"], Json({1}));
  for (const char* targets : {"all-linear", ".*[qv]_proj"}) {
    config.target_modules = targets;
    const Json json = lora_config_json(config, spec, "base");
    EXPECT_TRUE(json["layers_to_transform"].is_null());
    EXPECT_EQ(json["target_modules"], Json(targeted_modules(spec, config)));
    EXPECT_EQ(targeted_modules(spec, parse_lora_config(json, "here")), targeted_modules(spec, config));
  }
}

TEST(PeftFiles, AnAdapterForAnotherModelIsRefused) {
  try {
    read_adapter(spec_of("llama-odd"), kTraining / "llama");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalid_argument);
    EXPECT_NE(std::string(error.what()).find("q_proj"), std::string::npos) << error.what();
  }
  EXPECT_THROW(read_adapter(spec_of("gpt2"), kTraining / "llama"), Error);
  EXPECT_THROW(read_adapter(spec_of("llama"), kTraining / "nothing"), Error);
}

TEST(PeftFiles, WhatIsNotSupportedIsNamed) {
  for (const char* change :
       {R"({"use_dora": 1})", R"({"bias": "some"})", R"({"lora_bias": true})", R"({"peft_type": "IA3"})", R"({"r": 0})",
        R"({"lora_alpha": "8"})", R"({"rank_pattern": {"x": 0}})", R"({"target_modules": [1]})"}) {
    Json json = read_json(kTraining / "llama/adapter_config.json");
    const Json parsed = parse_json(change, "change");
    for (const auto& item : parsed.items()) json[item.key()] = item.value();
    EXPECT_THROW(parse_lora_config(json, "here"), Error) << change;
  }
}

}  // namespace
}  // namespace nibble::adapters
