// Trainer: several adapters over one quantized model, and whole models that load again.
#include "nibble/train.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/folder_case.h"
#include "base/output.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
const fs::path kModels = fs::path(NIBBLE_TEST_DATA) / "models";

AutoModelForCausalLM load(const fs::path& path, bool is_4bit = false) {
  LoadOptions options;
  options.dtype = DType::f32;
  options.threads = 2;
  options.quantization_config.load_in_4bit = is_4bit;
  options.quantization_config.bnb_4bit_quant_type = "nf4";
  options.quantization_config.bnb_4bit_use_double_quant = true;
  return AutoModelForCausalLM::from_pretrained(path, options);
}

/// Counting up from `first`, by `step`.
Dataset counting(int32_t first, int32_t step) {
  Dataset dataset;
  for (int32_t i = 0; i < 4; ++i) {
    Dataset::Sample sample;
    for (int32_t t = 0; t < 12; ++t) sample.ids.push_back(3 + (first + i + t * step) % 150);
    sample.is_target.assign(sample.ids.size(), true);
    sample.is_target[0] = false;
    dataset.samples.push_back(std::move(sample));
  }
  return dataset;
}

TrainingArguments arguments_for(const fs::path& out, int64_t steps) {
  TrainingArguments arguments;
  arguments.output_dir = out;
  arguments.max_steps = steps;
  arguments.per_device_train_batch_size = 2;
  arguments.learning_rate = 1e-2;
  arguments.save_steps = 0;
  arguments.optim = "adamw_8bit";
  return arguments;
}

const LoraConfig kLora{.r = 4, .lora_alpha = 8, .target_modules = "all-linear"};
const std::vector<int32_t> kPrompt{3, 7, 11, 15};

TEST(Trainer, AdaptersOverOneQuantizedModelAreSwitched) {
  Scratch scratch;
  AutoModelForCausalLM model = load(kModels / "llama", true);
  const auto base = model.logits(kPrompt);
  const Dataset ones = counting(0, 1), sevens = counting(5, 7);
  LoraConfig dora = kLora;
  dora.use_dora = true;
  Trainer(model, kLora, arguments_for(scratch.path / "policy", 12), ones, std::nullopt, "policy").train();
  Trainer(model, dora, arguments_for(scratch.path / "reward", 12), sevens, std::nullopt, "reward").train();
  EXPECT_EQ(model.active_adapter(), "reward");
  const double reward_on_sevens = evaluate(model, sevens), reward_on_ones = evaluate(model, ones);
  model.set_adapter("policy");
  const auto policy = model.logits(kPrompt);
  EXPECT_LT(evaluate(model, ones), reward_on_ones);
  EXPECT_GT(evaluate(model, sevens), reward_on_sevens);
  model.disable_adapter();
  EXPECT_EQ(model.logits(kPrompt), base);
  AutoModelForCausalLM again = load(kModels / "llama", true);
  again.load_adapter(scratch.path / "policy", "policy");
  EXPECT_EQ(again.logits(kPrompt), policy);
}

TEST(Trainer, PissaAdaptersFitWhatTheyAreWrittenFor) {
  for (const bool is_4bit : {false, true}) {
    Scratch scratch;
    AutoModelForCausalLM model = load(kModels / "llama", is_4bit);
    const auto base = model.logits(kPrompt);
    const Dataset data = counting(0, 1);
    const double before = evaluate(model, data);
    LoraConfig lora = kLora;
    lora.init_lora_weights = "pissa";
    TrainingArguments arguments = arguments_for(scratch.path / "whole", 6);
    arguments.lr_scheduler_type = "constant";
    Trainer(model, lora, arguments, data).train();
    EXPECT_LT(evaluate(model, data), before - 0.1);
    const auto trained = model.logits(kPrompt);
    AutoModelForCausalLM again = load(is_4bit ? scratch.path / "whole/residual_model" : kModels / "llama");
    again.load_adapter(scratch.path / "whole");
    const auto loaded = again.logits(kPrompt);
    for (size_t i = 0; i < trained.size(); ++i) EXPECT_NEAR(loaded[i], trained[i], is_4bit ? 0 : 1e-3);
    model.disable_adapter();
    EXPECT_EQ(model.logits(kPrompt), base);
    arguments.output_dir = scratch.path / "parts";
    arguments.max_steps = arguments.save_steps = 3;
    Trainer(model, lora, arguments, data, std::nullopt, "first").train();
    arguments.max_steps = 6;
    arguments.resume_from_checkpoint = arguments.output_dir;
    Trainer(model, lora, arguments, data, std::nullopt, "second").train();
    EXPECT_TRUE(read_file(scratch.path / "whole/adapter_model.safetensors") ==
                read_file(scratch.path / "parts/adapter_model.safetensors"));
  }
}

TEST(Trainer, EncoderDecodersLearnPairs) {
  Scratch scratch;
  for (const bool is_4bit : {false, true}) {
    LoadOptions options;
    options.dtype = DType::f32;
    options.threads = 2;
    options.device_map = "cpu";
    options.quantization_config.load_in_4bit = is_4bit;
    auto model = AutoModelForSeq2SeqLM::from_pretrained(kModels / "t5", options);
    Dataset data = counting(0, 1);
    for (Dataset::Sample& sample : data.samples) {
      sample.source = {sample.ids.rbegin(), sample.ids.rend()};
      sample.ids[0] = model.decoder_start_token_id();
    }
    const double before = evaluate(model, data);
    const fs::path out = scratch.path / (is_4bit ? "packed" : "plain");
    TrainingArguments arguments = arguments_for(out, 20);
    arguments.packing = is_4bit;
    Trainer(model, LoraConfig{.r = 4, .lora_alpha = 8}, arguments, data).train();
    const double after = evaluate(model, data);
    EXPECT_LT(after, before - 0.3);
    EXPECT_NE(read_file(out / "adapter_config.json").find("SEQ_2_SEQ_LM"), std::string::npos);
    model.disable_adapter();
    EXPECT_EQ(evaluate(model, data), before);
    auto again = AutoModelForSeq2SeqLM::from_pretrained(kModels / "t5", options);
    again.load_adapter(out);
    EXPECT_EQ(evaluate(again, data), after);
  }
}

TEST(Trainer, WholeModelsAreModels) {
  Scratch scratch;
  AutoModelForCausalLM model = load(kModels / "llama");
  const Dataset data = counting(0, 1);
  const double before = evaluate(model, data);
  const TrainingReport report = Trainer(model, std::nullopt, arguments_for(scratch.path / "out", 8), data).train();
  EXPECT_LT(evaluate(model, data), before - 0.5);
  EXPECT_NE(report.trainable_parameters.find("trainable%: 100.0000"), std::string::npos) << report.trainable_parameters;
  AutoModelForCausalLM again = load(scratch.path / "out");
  EXPECT_EQ(again.logits(kPrompt), model.logits(kPrompt));
}

TEST(Trainer, WholeModelsResumeBitForBit) {
  Scratch scratch;
  const fs::path base = scratch.path / "base";
  fs::copy(kModels / "opt", base);
  write_file(base / "generation_config.json", "{}");  // lies in the output already when a finished run goes on
  const auto run = [&](const fs::path& out, int64_t steps, int64_t save, bool resumes) {
    AutoModelForCausalLM model = load(base);
    TrainingArguments arguments = arguments_for(out, steps);
    arguments.lr_scheduler_type = "constant";
    arguments.save_steps = save;
    arguments.report_to = "tensorboard";
    if (resumes) arguments.resume_from_checkpoint = out;
    Trainer(model, std::nullopt, arguments, counting(0, 1)).train();
    EXPECT_TRUE(fs::exists(out / "runs"));
    return read_file(out / "model.safetensors");
  };
  const std::string whole = run(scratch.path / "whole", 4, 0, false);
  run(scratch.path / "parts", 2, 2, false);
  EXPECT_TRUE(whole == run(scratch.path / "parts", 4, 0, true));
}

TEST(Trainer, QuantizedModelsAreNotTrainedWhole) {
  Scratch scratch;
  AutoModelForCausalLM model = load(kModels / "llama", true);
  EXPECT_THROW(Trainer(model, std::nullopt, arguments_for(scratch.path / "out", 2), counting(0, 1)).train(), Error);
  EXPECT_FALSE(fs::exists(scratch.path / "out"));
}

}  // namespace
}  // namespace nibble
