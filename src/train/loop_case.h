// What the tests of training runs share: a tiny model, a data set of four samples, and where runs are written.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>

#include "adapters/peft_files.h"
#include "base/folder_case.h"
#include "base/json.h"
#include "base/output.h"
#include "train/loop.h"

namespace nibble::train {

namespace fs = std::filesystem;
inline const fs::path kData = NIBBLE_TEST_DATA;

inline std::unique_ptr<models::Decoder> load(const BitsAndBytesConfig& config = {}, const std::string& device = "cpu") {
  LoadOptions options;
  options.dtype = DType::f32;
  options.device_map = device;
  options.threads = 2;
  options.quantization_config = config;
  return models::load_decoder(kData / "models/llama", options);
}

inline Dataset golden_dataset() {
  Dataset dataset;
  const Json goldens = read_json(kData / "finetune.json");
  for (const Json& ids : goldens["samples"]) {
    Dataset::Sample sample{ids.get<std::vector<int32_t>>(), {}};
    sample.is_target.assign(sample.ids.size(), true);
    sample.is_target[0] = false;
    dataset.samples.push_back(std::move(sample));
  }
  return dataset;
}

inline TrainingArguments arguments_for(const fs::path& out, int64_t steps) {
  TrainingArguments arguments;
  arguments.output_dir = out;
  arguments.max_steps = steps;
  arguments.per_device_train_batch_size = 2;
  arguments.learning_rate = 1e-2;
  arguments.logging_steps = 1;
  arguments.save_steps = 0;
  return arguments;
}

inline adapters::Adapter fresh(const models::Decoder& decoder) {
  LoraConfig config{.r = 4, .lora_alpha = 8, .lora_dropout = 0.1};
  config.target_modules = "all-linear";
  return adapters::create_adapter(decoder.spec(), config, 1);
}

}  // namespace nibble::train
