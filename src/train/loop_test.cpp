// Training runs over a tiny model: torch's losses, evaluation, early stops, what its data may be.
#include <cmath>
#include <map>
#include <numeric>
#include <string>

#include "adapters/peft_files.h"
#include "base/error.h"
#include "base/json.h"
#include "base/output.h"
#include "device/cuda.h"
#include "train/dataset.h"
#include "train/loop_case.h"
#include "train/model.h"
#include "train/schedule.h"

namespace nibble::train {
namespace {

void expect_golden_losses(const std::string& device) {
  const Json goldens = read_json(kData / "finetune.json");
  for (const int64_t accumulation : {1, 2}) {
    Scratch scratch;
    const auto decoder = load({}, device);
    adapters::Adapter adapter = adapters::read_adapter(decoder->spec(), kData / "training/llama");
    TrainingArguments arguments = arguments_for(scratch.path / "out", goldens["steps"].get<int64_t>());
    arguments.per_device_train_batch_size = 4 / accumulation;
    arguments.gradient_accumulation_steps = accumulation;
    arguments.learning_rate = goldens["learning_rate"].get<double>();
    arguments.weight_decay = goldens["weight_decay"].get<double>();
    arguments.warmup_steps = goldens["warmup_steps"].get<int64_t>();
    std::vector<TrainingProgress> seen;
    const TrainingReport report = train_adapter(*decoder, adapter, "base", arguments, golden_dataset(), nullptr,
                                                [&](const TrainingProgress& now) { seen.push_back(now); });
    const auto losses = goldens["losses"].get<std::vector<double>>(),
               norms = goldens["grad_norms"].get<std::vector<double>>();
    ASSERT_EQ(seen.size(), losses.size());
    for (size_t i = 0; i < losses.size(); ++i) {
      EXPECT_NEAR(seen[i].loss, losses[i], 2e-3 * losses[i]) << "step " << i + 1;
      EXPECT_NEAR(seen[i].grad_norm, norms[i], 2e-2 * norms[i]) << "step " << i + 1;
    }
    EXPECT_LT(report.final_loss, losses[0]);
    EXPECT_EQ(report.steps, 12);
    EXPECT_EQ(adapters::read_adapter(decoder->spec(), scratch.path / "out").layers.size(), adapter.layers.size());
  }
}

TEST(Finetune, LossesAsTorchAndPeft) { expect_golden_losses("cpu"); }

TEST(Finetune, LossesAsTorchAndPeftOnAGpu) {
  if (const std::string missing = device::describe_cuda().missing; !missing.empty()) GTEST_SKIP() << missing;
  expect_golden_losses("cuda");
}

TEST(Finetune, WeightDecayPassesNormsBy) {
  Scratch scratch;
  const auto decoder = load({}, "cpu");
  adapters::Adapter adapter = adapters::whole_model(*decoder);
  TrainingArguments arguments = arguments_for(scratch.path / "out", 1);
  arguments.optim = "sgd";
  arguments.learning_rate = 1e-5;
  arguments.weight_decay = 5e4;  // half of a weight a step
  const auto sizes = [&] {
    std::map<std::string, double> all;
    for (const auto& [name, variable] : adapter.variables()) {
      const Tensor& value = variable->value;
      const double sum = std::accumulate(value.as<float>(), value.as<float>() + value.count(), 0.0,
                                         [](double total, float x) { return total + std::fabs(x); });
      all[name] = sum;
    }
    return all;
  };
  const auto before = sizes();
  train_adapter(*decoder, adapter, "base", arguments, golden_dataset(), nullptr, {});
  for (const auto& [name, size] : sizes())
    EXPECT_NEAR(size / before.at(name), name.find("norm") == std::string::npos ? 0.5 : 1.0, 1e-3) << name;
}

/// Of a run that trains more than low-rank updates: DoRA and the head, or the whole model.
std::vector<double> losses_beyond_lora(const std::string& device, bool is_whole) {
  Scratch scratch;
  const auto decoder = load({}, device);
  LoraConfig config{.r = 4, .lora_alpha = 8, .lora_dropout = 0.1};
  config.target_modules = "all-linear";
  config.use_dora = true;
  config.modules_to_save = {"lm_head"};
  adapters::Adapter adapter =
      is_whole ? adapters::whole_model(*decoder) : adapters::create_adapter(decoder->spec(), config, 1);
  if (!is_whole) adapters::add_from_model(adapter, *decoder);
  TrainingArguments arguments = arguments_for(scratch.path / "out", 6);
  arguments.learning_rate = 2e-3;
  arguments.gradient_checkpointing = true;
  std::vector<double> losses;
  train_adapter(*decoder, adapter, "base", arguments, golden_dataset(), nullptr,
                [&](const TrainingProgress& now) { losses.push_back(now.loss); });
  return losses;
}

TEST(Finetune, DoraWholeModulesAndWholeModelsOnAGpuAsOnTheCpu) {
  for (const bool is_whole : {false, true}) {
    SCOPED_TRACE(is_whole);
    const std::vector<double> expected = losses_beyond_lora("cpu", is_whole);
    EXPECT_LT(expected.back(), expected.front() - 0.1);
    if (!device::describe_cuda().missing.empty()) continue;
    const std::vector<double> found = losses_beyond_lora("cuda", is_whole);
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i)
      EXPECT_NEAR(found[i], expected[i], 2e-3 * expected[i]) << "step " << i + 1;
  }
}

TEST(Finetune, EarlyStopKeepsTheBest) {
  Scratch scratch;
  const auto decoder = load();
  adapters::Adapter adapter = fresh(*decoder);
  TrainingArguments arguments = arguments_for(scratch.path / "out", 40);
  arguments.learning_rate = 0.5;  // diverges: the loss on other data gets worse
  arguments.eval_steps = 1;
  arguments.early_stopping_patience = 3;
  const Dataset data = golden_dataset();
  Dataset other;
  other.samples = {data.samples[1]};
  Dataset train;
  train.samples = {data.samples[0], data.samples[2]};
  std::vector<double> losses;
  const TrainingReport report =
      train_adapter(*decoder, adapter, "base", arguments, train, &other, [&](const TrainingProgress& now) {
        if (now.eval_loss) losses.push_back(*now.eval_loss);
      });
  EXPECT_TRUE(report.stopped_early);
  EXPECT_LT(report.steps, 40);
  EXPECT_EQ(*report.eval_loss, *std::min_element(losses.begin(), losses.end()));
  TrainableModel model(*decoder, adapter, false);
  const size_t only[] = {0};
  const Batch batch = make_batch(other, only);
  EXPECT_NEAR(model.evaluate(batch) / static_cast<double>(batch.target_count()), *report.eval_loss, 1e-6);
}

TEST(Finetune, LossesThatAreNotFiniteStopTheRun) {
  Scratch scratch;
  const auto decoder = load();
  TrainingArguments arguments = arguments_for(scratch.path / "out", 9);
  arguments.learning_rate = 1e30;
  arguments.max_grad_norm = 0;
  arguments.save_steps = 1;
  const auto fails = [&](const Dataset* evaluation, const std::vector<std::string>& parts) {
    adapters::Adapter adapter = fresh(*decoder);
    try {
      train_adapter(*decoder, adapter, "base", arguments, golden_dataset(), evaluation, {});
      FAIL();
    } catch (const Error& error) {
      for (const std::string& part : parts)
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  };
  fails(nullptr, {"step 2", "the gradient of model.layers.0.self_attn.q_proj.lora_A.weight"});
  EXPECT_TRUE(fs::exists(scratch.path / "out/checkpoint-1/adapter_model.safetensors"));
  EXPECT_FALSE(fs::exists(scratch.path / "out/adapter_model.safetensors"));
  arguments.output_dir = scratch.path / "evaluated";
  arguments.eval_steps = 1;
  const Dataset evaluation = golden_dataset();
  fails(&evaluation, {"step 1", "evaluation loss"});
}

TEST(Finetune, WhatNeedsDataToEvaluateOnIsRefusedWithout) {
  Scratch scratch;
  const auto decoder = load();
  const Dataset data = golden_dataset();
  const auto fails = [&](int64_t eval_steps, int64_t patience, const Dataset* evaluation, const char* word) {
    TrainingArguments arguments = arguments_for(scratch.path / "out", 2);
    arguments.eval_steps = eval_steps;
    arguments.early_stopping_patience = patience;
    adapters::Adapter adapter = fresh(*decoder);
    try {
      train_adapter(*decoder, adapter, "base", arguments, data, evaluation, {});
      FAIL() << word;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  };
  fails(1, 0, nullptr, "eval_steps");
  fails(1, 2, nullptr, "eval_steps");
  fails(0, 2, &data, "early_stopping_patience");
  Dataset nothing;
  nothing.samples = {{data.samples[0].ids, std::vector<bool>(data.samples[0].ids.size(), false)}};
  nothing.samples[0].is_target[0] = true;  // nothing stands before it
  fails(0, 0, &nothing, "no token to predict");
  EXPECT_FALSE(fs::exists(scratch.path / "out"));
}

TEST(Finetune, WarmupMayBeAShareOfTheSteps) {
  Scratch scratch;
  const auto decoder = load();
  std::vector<double> rates[2];
  for (const bool is_ratio : {false, true}) {
    adapters::Adapter adapter = fresh(*decoder);
    TrainingArguments arguments = arguments_for(scratch.path / (is_ratio ? "ratio" : "steps"), 7);
    if (is_ratio)
      arguments.warmup_ratio = 0.3;  // of 7: 2.1, upwards
    else
      arguments.warmup_steps = 3;
    train_adapter(*decoder, adapter, "base", arguments, golden_dataset(), nullptr,
                  [&](const TrainingProgress& now) { rates[is_ratio].push_back(now.learning_rate); });
  }
  EXPECT_EQ(rates[0], rates[1]);
  EXPECT_LT(rates[0][1], rates[0][3]);
}

TEST(Finetune, OptimizersTakeTheirBetas) {
  Scratch scratch;
  const auto decoder = load();
  const auto run = [&](const char* optim, std::optional<double> beta1, std::optional<double> beta2,
                       std::optional<double> epsilon) {
    fs::remove_all(scratch.path / "out");
    adapters::Adapter adapter = fresh(*decoder);
    TrainingArguments arguments = arguments_for(scratch.path / "out", 3);
    arguments.optim = optim;
    arguments.adam_beta1 = beta1;
    arguments.adam_beta2 = beta2;
    arguments.adam_epsilon = epsilon;
    train_adapter(*decoder, adapter, "base", arguments, golden_dataset(), nullptr, {});
    return read_file(scratch.path / "out/adapter_model.safetensors");
  };
  for (const char* optim : {"adamw_torch", "ademamix", "lion_32bit"}) {
    const std::string plain = run(optim, {}, {}, {});
    EXPECT_TRUE(plain == run(optim, 0.9, 0.999, {})) << optim;
    EXPECT_FALSE(plain == run(optim, 0.5, {}, {})) << optim;
    EXPECT_FALSE(plain == run(optim, {}, 0.5, {})) << optim;
  }
  EXPECT_FALSE(run("adamw_torch", {}, {}, {}) == run("adamw_torch", {}, {}, 1e-2));
  EXPECT_THROW(run("sgd", 0.5, {}, {}), Error);
  EXPECT_THROW(run("adamw_torch", 1.5, {}, {}), Error);
}

TEST(Finetune, StepsAndReportsAreTold) {
  Scratch scratch;
  const auto decoder = load();
  adapters::Adapter adapter = fresh(*decoder);
  TrainingArguments arguments = arguments_for(scratch.path / "out", 4);
  arguments.logging_steps = 3;
  std::vector<int64_t> reports, steps;
  train_adapter(
      *decoder, adapter, "base", arguments, golden_dataset(), nullptr,
      [&](const TrainingProgress& now) { reports.push_back(now.step); },
      [&](const TrainingProgress& now) {
        steps.push_back(now.step);
        EXPECT_GT(now.loss, 0);
        EXPECT_GT(now.peak_memory_bytes, 0);
      });
  EXPECT_EQ(reports, (std::vector<int64_t>{3, 4}));
  EXPECT_EQ(steps, (std::vector<int64_t>{1, 2, 3, 4}));
}

/// Evaluating takes no time from the tokens a second of the steps around it.
TEST(Finetune, RatesAreThoseOfTraining) {
  Scratch scratch;
  const auto decoder = load();
  adapters::Adapter adapter = fresh(*decoder);
  TrainingArguments arguments = arguments_for(scratch.path / "out", 20);
  arguments.logging_steps = 20;
  arguments.eval_steps = 19;
  const Dataset data = golden_dataset();
  double fastest = 0, reported = 0;
  train_adapter(
      *decoder, adapter, "base", arguments, data, &data,
      [&](const TrainingProgress& now) {
        if (!now.eval_loss && now.step == 20) reported = now.tokens_per_second;
      },
      [&](const TrainingProgress& now) {
        if (now.step <= 19) fastest = std::max(fastest, now.tokens_per_second);
      });
  EXPECT_LT(reported, 2 * fastest);  // 20 times as much if the clock began anew
}

// ---- data
// -------------------------------------------------------------------------------------------------------------

/// A tokenizer of bytes; the chat template puts each turn between angle brackets.
TextEncoder byte_encoder() {
  return {[](std::string_view text, bool) {
            std::vector<int32_t> ids;
            for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
            return ids;
          },
          [](std::span<const ChatMessage> messages, bool add_generation_prompt) {
            std::string text;
            for (const ChatMessage& message : messages) {
              if (message.role == "nobody") fail(ErrorCode::invalid_argument, "chat template, line 1: who is that?");
              text += "<" + message.role + ">" + message.content + ";";
            }
            return add_generation_prompt ? text + "<assistant>" : text;
          },
          2};
}

Dataset read_lines(const std::string& text, const DatasetOptions& options = {}) {
  Scratch scratch;
  write_file(scratch.path / "data.jsonl", text);
  return read_jsonl(scratch.path / "data.jsonl", byte_encoder(), options);
}

/// The text of the tokens to be predicted; the end of text is "$".
std::string targets_of(const Dataset::Sample& sample) {
  std::string text;
  for (size_t i = 0; i < sample.ids.size(); ++i)
    if (sample.is_target[i]) text += sample.ids[i] == 2 ? '$' : static_cast<char>(sample.ids[i]);
  return text;
}

TEST(Jsonl, KindsOfLines) {
  const std::string text =
      R"({"text": "abc"})"
      "\n\n"
      R"({"prompt": "Q:", "completion": "A"})"
      "\n"
      R"({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]})"
      "\n"
      R"({"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "yo"}]})";
  const Dataset dataset = read_lines(text);
  ASSERT_EQ(dataset.samples.size(), 4u);
  EXPECT_EQ(targets_of(dataset.samples[0]), "bc$");
  EXPECT_EQ(targets_of(dataset.samples[1]), "A$");
  EXPECT_EQ(targets_of(dataset.samples[2]), "user>hi;<assistant>yo;");
  const Dataset only = read_lines(text, {.completion_only_loss = true});
  EXPECT_EQ(targets_of(only.samples[2]), "yo;");
  EXPECT_EQ(targets_of(dataset.samples[3]), "yo;");
  EXPECT_EQ(dataset.samples[3].ids, dataset.samples[2].ids);
  const Dataset all = read_lines(text, {.completion_only_loss = false});
  EXPECT_EQ(targets_of(all.samples[1]), ":A$");
  EXPECT_EQ(targets_of(all.samples[3]), "user>hi;<assistant>yo;");
}

TEST(Jsonl, LongSamplesAreCutOrDroppedAndCounted) {
  const std::string text = R"({"text": "abcdefgh"})"
                           "\n"
                           R"({"text": "ab"})";
  const Dataset cut = read_lines(text, {.max_length = 4});
  EXPECT_EQ(cut.shortened, 1);
  EXPECT_EQ(cut.samples[0].ids.size(), 4u);
  const Dataset dropped = read_lines(text, {.max_length = 4, .drop_long = true});
  EXPECT_EQ(dropped.dropped, 1);
  EXPECT_EQ(dropped.samples.size(), 1u);
}

TEST(Jsonl, ErrorsNameTheLine) {
  for (const char* line : {"{\"text\": 1}", "[1]", "{\"tekst\": \"a\"}", "{\"text\": \"a\"", "{\"prompt\": \"a\"}",
                           "{\"messages\": [{\"role\": \"nobody\", \"content\": \"a\"}]}", "{\"messages\": []}",
                           "{\"messages\": [1]}", "{\"prompt\": [{\"role\": \"user\", \"content\": \"a\"}]}",
                           "{\"prompt\": [{\"role\": \"user\", \"content\": \"a\"}], \"completion\": \"b\"}",
                           "{\"messages\": [{\"role\": \"user\"}]}"}) {
    try {
      read_lines(std::string("{\"text\": \"fine\"}\n") + line);
      FAIL() << line;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("line 2"), std::string::npos) << error.what();
    }
  }
  EXPECT_THROW(read_lines(""), Error);
  EXPECT_THROW(read_lines("{\"prompt\": \"abc\", \"completion\": \"x\"}", {.max_length = 2}),
               Error);  // nothing to predict
}

TEST(Packing, FillsRowsAndKeepsEverySample) {
  Dataset dataset;
  for (const size_t length : {30, 10, 25, 15, 40, 5, 5}) {
    Dataset::Sample sample;
    sample.ids.assign(length, 7);
    sample.is_target.assign(length, true);
    dataset.samples.push_back(sample);
  }
  const std::vector<size_t> order{0, 1, 2, 3, 4, 5, 6};
  const auto rows = pack(dataset, order, 40);
  EXPECT_EQ(rows, (std::vector<std::vector<size_t>>{{0, 1}, {2, 3}, {4}, {5, 6}}));
}

}  // namespace
}  // namespace nibble::train
