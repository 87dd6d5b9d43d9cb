// Runs that stop and go on: the same bits for every optimizer, and refusals of what would mix runs.
#include <cstring>
#include <functional>
#include <optional>
#include <set>

#include "base/cancel.h"
#include "base/error.h"
#include "device/cuda.h"
#include "nibble/optim.h"
#include "train/loop_case.h"

namespace {
std::multiset<std::string> synced;  // names of files and folders
}

/// In the place of the C library's: the tests need not wait for the disk.
extern "C" int fsync(int fd) {
  synced.insert(std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd)).filename());
  return 0;
}

namespace nibble::train {
namespace {

/// Runs `steps` in one go, or stops after `stop` and goes on; what is written at the end.
std::string run(const fs::path& out, int64_t steps, std::optional<int64_t> stop, const std::string& optim, bool packing,
                const std::string& device = "cpu") {
  BitsAndBytesConfig config;
  config.load_in_4bit = true;
  config.bnb_4bit_quant_type = "nf4";
  const auto decoder = load(config, device);
  TrainingArguments arguments = arguments_for(out, steps);
  arguments.optim = optim;
  arguments.gradient_accumulation_steps = 2;
  arguments.lr_scheduler_type = "constant";
  arguments.packing = packing;
  arguments.packing_length = 40;
  arguments.gradient_checkpointing = packing;
  if (stop) {
    arguments.max_steps = *stop;
    arguments.save_steps = *stop;
    adapters::Adapter first = fresh(*decoder);
    train_adapter(*decoder, first, "base", arguments, golden_dataset(), nullptr, {});
    arguments.max_steps = steps;
    arguments.resume_from_checkpoint = out;
  }
  adapters::Adapter adapter = fresh(*decoder);
  train_adapter(*decoder, adapter, "base", arguments, golden_dataset(), nullptr, {});
  return read_file(out / "adapter_model.safetensors") + read_json(out / "trainer_state.json")["log_history"].dump();
}

TEST(Finetune, ResumingGivesTheBitsOfAnUninterruptedRun) {
  for (const bool packing : {false, true})
    for (const std::string optim : {"adamw_torch", "adamw_8bit"}) {
      SCOPED_TRACE(optim);
      Scratch scratch;
      const std::string whole = run(scratch.path / "whole", 7, {}, optim, packing);
      EXPECT_TRUE(whole == run(scratch.path / "parts", 7, 3, optim, packing));
      EXPECT_TRUE(whole == run(scratch.path / "again", 7, {}, optim, packing));
    }
}

TEST(Finetune, ResumingGivesTheSameBitsOnAGpu) {
  if (const std::string missing = device::describe_cuda().missing; !missing.empty()) GTEST_SKIP() << missing;
  Scratch scratch;
  const std::string whole = run(scratch.path / "whole", 7, {}, "adamw_8bit", true, "cuda");
  EXPECT_TRUE(whole == run(scratch.path / "parts", 7, 3, "adamw_8bit", true, "cuda"));
}

/// Updates large enough for 8-bit states, biases' and whole modules' beside them, and a rate that falls. The second run
/// goes on from an earlier checkpoint of the first, and writes the later ones again.
TEST(Finetune, EveryOptimizerGoesOnWithTheSameBits) {
  const auto decoder = load();
  bool is_linear = false;
  for (const std::string& optim : optim_names()) {
    SCOPED_TRACE(optim);
    Scratch scratch;
    const fs::path out = scratch.path / "out";
    TrainingArguments arguments = arguments_for(out, 5);
    arguments.optim = optim;
    arguments.learning_rate = 1e-3;
    arguments.weight_decay = 0.1;
    arguments.warmup_steps = 1;
    arguments.lr_scheduler_type = (is_linear = !is_linear) ? "linear" : "cosine";
    arguments.save_steps = 2;
    const auto train = [&] {
      LoraConfig config{.r = 128, .lora_alpha = 128, .lora_dropout = 0.1};
      config.target_modules = "all-linear";
      config.modules_to_save = {"lm_head"};
      adapters::Adapter adapter = adapters::create_adapter(decoder->spec(), config, 1);
      adapters::add_from_model(adapter, *decoder);
      train_adapter(*decoder, adapter, "base", arguments, golden_dataset(), nullptr, {});
      std::string written;
      for (const char* name : {"adapter_model.safetensors", "trainer_state.json", "checkpoint-4/optimizer.safetensors"})
        written += read_file(out / name);
      return written;
    };
    const std::string whole = train();
    arguments.resume_from_checkpoint = out / "checkpoint-2";
    EXPECT_TRUE(whole == train());
  }
}

TEST(Finetune, AnEarlyStopIsTheSameAfterResuming) {
  Scratch scratch;
  const auto decoder = load();
  const fs::path out = scratch.path / "out";
  TrainingArguments arguments = arguments_for(out, 40);
  arguments.learning_rate = 0.5;  // diverges: the loss on other data gets worse
  arguments.eval_steps = arguments.save_steps = 1;
  arguments.early_stopping_patience = 3;
  const Dataset data = golden_dataset();
  Dataset other, train;
  other.samples = {data.samples[1]};
  train.samples = {data.samples[0], data.samples[2]};
  std::string written;
  const auto run = [&] {
    adapters::Adapter adapter = fresh(*decoder);
    TrainingReport report = train_adapter(*decoder, adapter, "base", arguments, train, &other, {});
    EXPECT_TRUE(report.stopped_early);
    written = read_file(out / "adapter_model.safetensors") + read_file(out / "trainer_state.json");
    return report;
  };
  const TrainingReport whole = run();
  const std::string expected = written;
  for (const int64_t back : {0, 1, 2}) {
    arguments.resume_from_checkpoint = out / ("checkpoint-" + std::to_string(whole.steps - back));
    const TrainingReport again = run();
    EXPECT_EQ(again.steps, whole.steps) << back;
    EXPECT_EQ(again.eval_loss, whole.eval_loss) << back;
    EXPECT_EQ(again.final_loss, whole.final_loss) << back;
    EXPECT_TRUE(written == expected) << back;
  }
}

TEST(Finetune, EvaluationsOfOtherDataDoNotCount) {
  Scratch scratch;
  const auto decoder = load();
  const Dataset data = golden_dataset();
  Dataset one, two;
  one.samples = {data.samples[1]};
  two.samples = {data.samples[2]};
  TrainingArguments arguments = arguments_for(scratch.path / "out", 2);
  arguments.eval_steps = arguments.save_steps = 1;
  arguments.early_stopping_patience = 9;
  const auto run = [&](const Dataset* evaluation) {
    adapters::Adapter adapter = fresh(*decoder);
    return train_adapter(*decoder, adapter, "base", arguments, data, evaluation, {}).eval_loss;
  };
  const auto of_one = run(&one);
  arguments.resume_from_checkpoint = scratch.path / "out";
  EXPECT_EQ(run(&one), of_one);
  const auto of_two = run(&two);
  arguments.eval_steps = arguments.early_stopping_patience = 0;
  EXPECT_EQ(run(nullptr), std::nullopt);
  arguments.resume_from_checkpoint.reset();
  arguments.output_dir = scratch.path / "whole";
  EXPECT_EQ(run(&two), of_two);
}

TEST(Finetune, StatesOfEarlyStopsAreChecked) {
  Scratch scratch;
  const auto decoder = load();
  const Dataset data = golden_dataset();
  TrainingArguments arguments = arguments_for(scratch.path / "out", 1);
  arguments.eval_steps = arguments.save_steps = arguments.early_stopping_patience = 1;
  const auto run = [&] {
    adapters::Adapter adapter = fresh(*decoder);
    train_adapter(*decoder, adapter, "base", arguments, data, &data, {});
  };
  run();
  arguments.resume_from_checkpoint = scratch.path / "out/checkpoint-1";
  const fs::path path = scratch.path / "out/checkpoint-1/trainer_state.json";
  const Json good = read_json(path);
  for (const Json& worse : {Json(-5), Json(0.5), Json("2"), Json()}) {
    Json state = good;
    state["early_stop"]["worse"] = worse;
    write_file(path, state.dump());
    try {
      run();
      FAIL() << worse;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::corrupt_file);
      EXPECT_NE(std::string(error.what()).find("trainer_state.json: key 'worse'"), std::string::npos) << error.what();
    }
  }
  write_file(path, good.dump());
  fs::remove(scratch.path / "out/checkpoint-1/best.safetensors");
  EXPECT_THROW(run(), Error);
}

TEST(Finetune, NamesThatAreNoUtf8CostNoRun) {
  Scratch scratch;
  const auto decoder = load();
  TrainingArguments arguments = arguments_for(scratch.path / "out", 1);
  arguments.save_steps = 1;
  const auto run = [&] {
    LoraConfig config{.r = 4, .target_modules = "all-linear", .rank_pattern = {{"q_proj|\xff", 2}}};
    adapters::Adapter adapter = adapters::create_adapter(decoder->spec(), config, 1);
    train_adapter(*decoder, adapter, "caf\xe9", arguments, golden_dataset(), nullptr, {});
  };
  run();
  arguments.resume_from_checkpoint = scratch.path / "out";
  run();
  EXPECT_EQ(read_json(scratch.path / "out/adapter_config.json")["base_model_name_or_path"], "caf\uFFFD");
}

TEST(Finetune, CheckpointsAndAdaptersSurviveALossOfPower) {
  Scratch scratch;
  const auto decoder = load();
  TrainingArguments arguments = arguments_for(scratch.path / "out", 1);
  arguments.save_steps = 1;
  adapters::Adapter adapter = fresh(*decoder);
  synced.clear();
  train_adapter(*decoder, adapter, "base", arguments, golden_dataset(), nullptr, {});
  for (const char* name : {"adapter_model.safetensors", "adapter_config.json", "trainer_state.json", "out"})
    EXPECT_EQ(synced.count(name), 2u) << name;  // of the checkpoint, and at the end
  EXPECT_GE(synced.count("optimizer.safetensors"), 1u);
}

/// In a step, in an evaluation on the way, and in the one at the end.
TEST(Finetune, AnInterruptionLosesNoStep) {
  Scratch scratch;
  const auto decoder = load();
  const Dataset data = golden_dataset();
  const auto run = [&](const fs::path& out, int64_t interrupted, bool resumes) {
    TrainingArguments arguments = arguments_for(out, 5);
    arguments.eval_steps = 2;
    arguments.early_stopping_patience = 9;
    if (resumes) arguments.resume_from_checkpoint = out;
    adapters::Adapter adapter = fresh(*decoder);
    train_adapter(*decoder, adapter, "base", arguments, data, &data, {}, [&](const TrainingProgress& now) {
      if (now.step == interrupted) request_cancel();
    });
    return read_file(out / "adapter_model.safetensors") + read_file(out / "trainer_state.json");
  };
  const std::string whole = run(scratch.path / "whole", 0, false);
  for (const int64_t step : {1, 2, 5}) {
    const fs::path out = scratch.path / std::to_string(step);
    try {
      run(out, step, false);
      FAIL() << step;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::cancelled);
      EXPECT_EQ(error.what(), fmt::format("interrupted after step {0} of 5; resume_from_checkpoint goes on from "
                                          "{1}/checkpoint-{0}",
                                          step, out.string()));
    }
    reset_cancel();
    EXPECT_FALSE(fs::exists(out / "adapter_model.safetensors"));
    EXPECT_TRUE(whole == run(out, 0, true)) << step;
  }
  request_cancel();
  EXPECT_THROW(run(scratch.path / "at-once", 0, false), Error);
  reset_cancel();
  EXPECT_TRUE(fs::is_empty(scratch.path / "at-once"));
}

TEST(Finetune, WhatAKillLeftGoesWhenTheRunGoesOn) {
  Scratch scratch;
  const auto decoder = load();
  const fs::path out = scratch.path / "out";
  TrainingArguments arguments = arguments_for(out, 2);
  arguments.save_steps = 1;
  adapters::Adapter first = fresh(*decoder), second = fresh(*decoder);
  train_adapter(*decoder, first, "base", arguments, golden_dataset(), nullptr, {});
  fs::create_directories(out / ".checkpoint-3.partial-x1y2z3");
  fs::rename(out / "checkpoint-2", out / ".checkpoint-2.partial-a1b2c3.old");  // between the renames of a replacement
  fs::create_directories(out / "mine");
  fs::create_directories(out / ".checkpoint-notes");
  arguments.resume_from_checkpoint = out / "checkpoint-2";
  train_adapter(*decoder, second, "base", arguments, golden_dataset(), nullptr, {});
  EXPECT_TRUE(fs::exists(out / "checkpoint-2/trainer_state.json"));
  EXPECT_FALSE(fs::exists(out / ".checkpoint-3.partial-x1y2z3"));
  EXPECT_TRUE(fs::exists(out / "mine"));
  EXPECT_TRUE(fs::exists(out / ".checkpoint-notes"));
}

TEST(Finetune, OnlySoManyCheckpointsStay) {
  Scratch scratch;
  const auto decoder = load();
  const fs::path out = scratch.path / "out";
  TrainingArguments arguments = arguments_for(out, 5);
  arguments.save_steps = 1;
  const auto numbers = [&] {
    std::string found;
    for (int i = 1; i <= 5; ++i)
      if (fs::exists(out / ("checkpoint-" + std::to_string(i)))) found += std::to_string(i);
    return found;
  };
  adapters::Adapter first = fresh(*decoder), second = fresh(*decoder);
  train_adapter(*decoder, first, "base", arguments, golden_dataset(), nullptr, {});
  EXPECT_EQ(numbers(), "12345");
  arguments.save_total_limit = 2;
  arguments.resume_from_checkpoint = out / "checkpoint-2";
  arguments.max_steps = 4;
  train_adapter(*decoder, second, "base", arguments, golden_dataset(), nullptr, {});
  EXPECT_EQ(numbers(), "345");  // 5 was left by the first run
}

TEST(Finetune, RefusesAnotherRunsState) {
  Scratch scratch;
  const auto decoder = load();
  const auto train = [&](const models::Decoder& base, const Dataset& data, const fs::path& out,
                         const std::function<void(LoraConfig&)>& change, bool resumes) {
    LoraConfig config{.r = 4, .lora_alpha = 8, .lora_dropout = 0.1};
    config.target_modules = "all-linear";
    change(config);
    TrainingArguments arguments = arguments_for(out, resumes ? 2 : 1);
    arguments.save_steps = resumes ? 0 : 1;
    arguments.lr_scheduler_type = "constant";
    if (resumes) arguments.resume_from_checkpoint = scratch.path / "out";
    arguments.packing_length = resumes ? 30 : 40;  // without packing it says nothing
    adapters::Adapter adapter = adapters::create_adapter(base.spec(), config, 1);
    train_adapter(base, adapter, "base", arguments, data, nullptr, {});
  };
  const auto keep = [](LoraConfig&) {};
  train(*decoder, golden_dataset(), scratch.path / "out", keep, false);
  const auto fails = [&](const char* word, const models::Decoder& base, const Dataset& data,
                         const std::function<void(LoraConfig&)>& change) {
    try {
      train(base, data, scratch.path / "never", change, true);
      FAIL() << word;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::invalid_argument);
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
    fs::remove_all(scratch.path / "never");
  };
  const Dataset data = golden_dataset();
  fails("lora_alpha 8.0, found 16.0", *decoder, data, [](LoraConfig& config) { config.lora_alpha = 16; });
  fails("lora_dropout", *decoder, data, [](LoraConfig& config) { config.lora_dropout = 0.2; });
  fails("use_rslora", *decoder, data, [](LoraConfig& config) { config.use_rslora = true; });
  fails("alpha_pattern", *decoder, data, [](LoraConfig& config) { config.alpha_pattern["q_proj"] = 3; });
  fails("init_lora_weights", *decoder, data, [](LoraConfig& config) { config.init_lora_weights = "gaussian"; });
  Dataset changed = data;
  changed.samples[1].ids[2] ^= 1;
  fails("data", *decoder, changed, keep);
  changed = data;
  changed.samples[1].is_target[2] = false;
  fails("data", *decoder, changed, keep);
  fails("load_in_4bit", *load({.load_in_4bit = true}), data, keep);
  fails("load_in_8bit", *load({.load_in_8bit = true}), data, keep);
  const fs::path folder = scratch.path / "other";
  fs::copy(kData / "models/llama", folder);
  std::string bytes = read_file(folder / "model.safetensors");
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof header);
  bytes[sizeof header + header] ^= 1;  // of the first weight
  write_file(folder / "model.safetensors", bytes);
  LoadOptions options;
  options.dtype = DType::f32;
  options.device_map = "cpu";
  fails("base_weights", *models::load_decoder(folder, options), data, keep);
  train(*decoder, data, scratch.path / "again", keep, true);
}

TEST(Finetune, RefusesWhatWouldMixRuns) {
  Scratch scratch;
  const auto decoder = load();
  adapters::Adapter adapter = fresh(*decoder);
  TrainingArguments arguments = arguments_for(scratch.path / "out", 2);
  arguments.save_steps = 1;
  train_adapter(*decoder, adapter, "base", arguments, golden_dataset(), nullptr, {});
  const std::string before = read_file(scratch.path / "out/adapter_model.safetensors");
  const auto fails = [&](const char* word) {
    try {
      train_adapter(*decoder, adapter, "base", arguments, golden_dataset(), nullptr, {});
      FAIL() << word;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  };
  fails("holds files already");
  arguments.output_dir = scratch.path / "out/trainer_state.json";
  fails("is no directory");
  arguments.output_dir = scratch.path / "out";
  arguments.resume_from_checkpoint = scratch.path / "nowhere";
  fails("no checkpoint");
  arguments.resume_from_checkpoint = scratch.path / "out";
  arguments.seed = 7;
  fails("seed");
  arguments.seed = 42;
  arguments.optim = "sparkle";
  fails("sparkle");
  arguments.optim = "adamw_torch";
  arguments.learning_rate = -1;
  fails("learning_rate");
  EXPECT_EQ(before, read_file(scratch.path / "out/adapter_model.safetensors"));
}

}  // namespace
}  // namespace nibble::train
