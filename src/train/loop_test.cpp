// Training runs over a tiny model: torch's losses, resuming bit for bit, evaluation, early stops, refusals.
#include "train/loop.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <numeric>
#include <string>

#include "adapters/peft_files.h"
#include "base/error.h"
#include "base/json.h"
#include "base/output.h"
#include "device/cuda.h"
#include "train/dataset.h"
#include "train/schedule.h"

namespace nibble::train {
namespace {

namespace fs = std::filesystem;
const fs::path kData = NIBBLE_TEST_DATA;

/// A folder that goes when the test ends.
struct Scratch {
  fs::path path = fs::temp_directory_path() / ("nibble-finetune-" + std::to_string(::getpid()));
  Scratch() {
    fs::remove_all(path);
    fs::create_directories(path);
  }
  ~Scratch() { fs::remove_all(path); }
};

std::unique_ptr<models::Decoder> load(const BitsAndBytesConfig& config = {}, const std::string& device = "cpu") {
  LoadOptions options;
  options.dtype = DType::f32;
  options.device_map = device;
  options.threads = 2;
  options.quantization_config = config;
  return models::load_decoder(kData / "models/llama", options);
}

Dataset golden_dataset() {
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

TrainingArguments arguments_for(const fs::path& out, int64_t steps) {
  TrainingArguments arguments;
  arguments.output_dir = out;
  arguments.max_steps = steps;
  arguments.per_device_train_batch_size = 2;
  arguments.learning_rate = 1e-2;
  arguments.logging_steps = 1;
  arguments.save_steps = 0;
  return arguments;
}

adapters::Adapter fresh(const models::Decoder& decoder) {
  LoraConfig config{.r = 4, .lora_alpha = 8, .lora_dropout = 0.1};
  config.target_modules = "all-linear";
  return adapters::create_adapter(decoder.spec(), config, 1);
}

std::string bytes_of(const fs::path& path) { return read_file(path); }

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
  return bytes_of(out / "adapter_model.safetensors") + read_json(out / "trainer_state.json")["log_history"].dump();
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

TEST(Finetune, EveryOptimizerOfTransformersTakesASmallStep) {
  Scratch scratch;
  const auto decoder = load();
  for (const char* optim : {"adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit", "sgd"}) {
    SCOPED_TRACE(optim);
    adapters::Adapter adapter = fresh(*decoder);
    TrainingArguments arguments = arguments_for(scratch.path / optim, 2);
    arguments.optim = optim;
    try {
      train_adapter(*decoder, adapter, "base", arguments, golden_dataset(), nullptr, {});
    } catch (const Error& error) {
      EXPECT_EQ(std::string_view(optim), "sgd") << error.what();  // wants a momentum, or is no name of that list
    }
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

TEST(Finetune, RefusesWhatWouldMixRuns) {
  Scratch scratch;
  const auto decoder = load();
  adapters::Adapter adapter = fresh(*decoder);
  TrainingArguments arguments = arguments_for(scratch.path / "out", 2);
  arguments.save_steps = 1;
  train_adapter(*decoder, adapter, "base", arguments, golden_dataset(), nullptr, {});
  const std::string before = bytes_of(scratch.path / "out/adapter_model.safetensors");
  const auto fails = [&](const char* word) {
    try {
      train_adapter(*decoder, adapter, "base", arguments, golden_dataset(), nullptr, {});
      FAIL() << word;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  };
  fails("output_dir");
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
  EXPECT_EQ(before, bytes_of(scratch.path / "out/adapter_model.safetensors"));
}

TEST(Finetune, LossesThatAreNotFiniteStopTheRun) {
  Scratch scratch;
  const auto decoder = load();
  adapters::Adapter adapter = fresh(*decoder);
  adapter.layers[3].lora.b->value.as<float>()[0] = INFINITY;
  try {
    train_adapter(*decoder, adapter, "base", arguments_for(scratch.path / "out", 2), golden_dataset(), nullptr, {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("step 1"), std::string::npos) << error.what();
  }
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
            for (const ChatMessage& message : messages) text += "<" + message.role + ">" + message.content + ";";
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
      R"({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]})";
  const Dataset dataset = read_lines(text);
  ASSERT_EQ(dataset.samples.size(), 3u);
  EXPECT_EQ(targets_of(dataset.samples[0]), "bc$");
  EXPECT_EQ(targets_of(dataset.samples[1]), "A$");
  EXPECT_EQ(targets_of(dataset.samples[2]), "user>hi;<assistant>yo;");
  const Dataset only = read_lines(text, {.completion_only_loss = true});
  EXPECT_EQ(targets_of(only.samples[2]), "yo;");
  const Dataset all = read_lines(text, {.completion_only_loss = false});
  EXPECT_EQ(targets_of(all.samples[1]), ":A$");
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
                           "{\"messages\": []}", "{\"messages\": [1]}", "{\"messages\": [{\"role\": \"user\"}]}"}) {
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
