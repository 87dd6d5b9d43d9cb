// Adapters beside the weights: the logits of PEFT, switching, and the base model again.
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "base/folder_case.h"
#include "checkpoint/checkpoint.h"
#include "nibble/checkpoint.h"
#include "nibble/model.h"
#include "nibble/seq2seq.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
const fs::path kModels = fs::path(NIBBLE_TEST_DATA) / "models", kTraining = fs::path(NIBBLE_TEST_DATA) / "training";

AutoModelForCausalLM load_from(const fs::path& path) {
  LoadOptions options;
  options.dtype = DType::f32;
  options.threads = 2;
  return AutoModelForCausalLM::from_pretrained(path, options);
}

/// "llama.dora" is an adapter of "llama".
fs::path base_of(const std::string& name) { return kModels / name.substr(0, name.find('.')); }

AutoModelForCausalLM load(const std::string& name) { return load_from(base_of(name)); }

std::vector<int32_t> prompt_of(const Checkpoint& goldens) {
  const Tensor ids = goldens.get("ids"), lengths = goldens.get("lengths");
  return {ids.as<int32_t>(), ids.as<int32_t>() + lengths.as<int32_t>()[0]};
}

double relative_error(const std::vector<float>& found, const Tensor& expected) {
  if (static_cast<int64_t>(found.size()) != expected.count()) return INFINITY;
  double difference = 0, norm = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    difference += std::pow(static_cast<double>(found[i]) - static_cast<double>(expected.as<float>()[i]), 2);
    norm += std::pow(static_cast<double>(expected.as<float>()[i]), 2);
  }
  return std::sqrt(difference / norm);
}

TEST(AdapterApi, LogitsAsPeft) {
  for (const auto& entry : fs::directory_iterator(kTraining)) {
    const std::string name = entry.path().filename().string();
    SCOPED_TRACE(name);
    const auto goldens = Checkpoint::open(entry.path() / "goldens.safetensors");
    AutoModelForCausalLM model = load(name);
    model.load_adapter(entry.path());
    EXPECT_LT(relative_error(model.logits(prompt_of(*goldens)), goldens->get("logits")), 1e-4);
  }
}

TEST(AdapterApi, EncoderDecodersAsPeft) {
  const fs::path folder = fs::path(NIBBLE_TEST_DATA) / "seq2seq_training";
  for (const std::string name : {"t5", "t5-gated"}) {
    const auto goldens = Checkpoint::open(folder / name / "goldens.safetensors");
    LoadOptions options;
    options.dtype = DType::f32;
    options.threads = 2;
    auto model = AutoModelForSeq2SeqLM::from_pretrained(kModels / name, options);
    model.load_adapter(folder / name);
    const Tensor source = goldens->get("source"), lengths = goldens->get("source_lengths");
    EXPECT_LT(relative_error(model.logits({source.as<int32_t>(), static_cast<size_t>(lengths.as<int32_t>()[0])},
                                          prompt_of(*goldens)),
                             goldens->get("logits")),
              1e-4);
  }
}

TEST(AdapterApi, SwitchedAndTakenOff) {
  const auto goldens = Checkpoint::open(kTraining / "llama/goldens.safetensors");
  const auto prompt = prompt_of(*goldens);
  AutoModelForCausalLM model = load("llama");
  const auto plain = model.logits(prompt);
  model.load_adapter(kTraining / "llama", "policy");
  const auto adapted = model.logits(prompt);
  EXPECT_NE(plain, adapted);
  EXPECT_EQ(model.active_adapter(), "policy");
  model.disable_adapter();
  EXPECT_EQ(model.logits(prompt), plain);
  EXPECT_EQ(model.active_adapter(), "");
  model.set_adapter("policy");
  EXPECT_EQ(model.logits(prompt), adapted);
  EXPECT_THROW(model.set_adapter("reward"), Error);
  EXPECT_THROW(model.load_adapter(kTraining / "llama", "policy"), Error);
  EXPECT_THROW(model.load_adapter(kTraining / "gpt2", "other"), Error);
  EXPECT_EQ(model.logits(prompt), adapted);
}

TEST(Adapters, StartsThatPeftTookOffTheWeightsAreTakenOff) {
  for (const char* start : {"pissa", "olora"}) {
    const fs::path path = fs::path(NIBBLE_TEST_DATA) / start;
    const auto goldens = Checkpoint::open(path / "goldens.safetensors");
    const Tensor ids = goldens->get("ids");
    AutoModelForCausalLM model = load("llama");
    model.load_adapter(path);
    EXPECT_LT(
        relative_error(model.logits({ids.as<int32_t>(), ids.as<int32_t>() + ids.count()}), goldens->get("logits")),
        1e-3)
        << start;
    EXPECT_THROW(load_from(kModels / "llama-nf4-dq").load_adapter(path), Error) << start;
  }
}

TEST(Merge, LogitsOfTheMergedModelAreThoseOfPeft) {
  for (const auto& entry : fs::directory_iterator(kTraining)) {
    const std::string name = entry.path().filename().string();
    SCOPED_TRACE(name);
    Scratch scratch;
    const auto goldens = Checkpoint::open(entry.path() / "goldens.safetensors");
    merge_checkpoint(base_of(name), entry.path(), scratch.path / "out", {.dtype = DType::f32, .threads = 2});
    LoadOptions options;
    options.dtype = DType::f32;
    AutoModelForCausalLM model = AutoModelForCausalLM::from_pretrained(scratch.path / "out", options);
    EXPECT_LT(relative_error(model.logits(prompt_of(*goldens)), goldens->get("logits")), 1e-4);
  }
}

/// The share of equal bytes; for scales, how near they are.
double equal_share(const Tensor& a, const Tensor& b) {
  if (a.size_bytes() != b.size_bytes()) return 0;
  if (a.dtype() == DType::f32) return 1 - relative_error({a.as<float>(), a.as<float>() + a.count()}, b);
  int64_t equal = 0;
  for (size_t i = 0; i < a.bytes().size(); ++i) equal += a.bytes()[i] == b.bytes()[i] ? 1 : 0;
  return static_cast<double>(equal) / static_cast<double>(a.size_bytes());
}

/// PEFT rounds the update to the weight's type before adding it, so that a code may differ here and there.
TEST(Merge, QuantizedModelsAsPeftMergesThem) {
  for (const std::string name : {"llama-nf4-dq", "llama-int8"}) {
    SCOPED_TRACE(name);
    Scratch scratch;
    merge_checkpoint(kModels / name, kTraining / "llama", scratch.path / "out", {.requantize = true, .threads = 2});
    const auto merged = Checkpoint::open(scratch.path / "out"),
               goldens = Checkpoint::open(fs::path(NIBBLE_TEST_DATA) / "merged" / (name + ".safetensors")),
               before = Checkpoint::open(kModels / name);
    for (const TensorInfo& info : before->tensors()) EXPECT_NE(merged->find(info.name), nullptr) << info.name;
    ASSERT_GE(goldens->tensors().size(), 2u);
    for (const TensorInfo& info : goldens->tensors())
      EXPECT_GT(equal_share(merged->get(info.name), goldens->get(info.name)), 0.92) << info.name;
    const std::string same = "model.layers.0.mlp.up_proj.weight";  // the adapter leaves it alone
    EXPECT_EQ(equal_share(merged->get(same), before->get(same)), 1);
    AutoModelForCausalLM model = load_from(scratch.path / "out");
    EXPECT_EQ(model.logits(std::vector<int32_t>{3, 4}).size(), 2u * 160);
  }
}

TEST(Merge, AQuantizedModelIsWrittenPlain) {
  Scratch scratch;
  const auto report = merge_checkpoint(kModels / "llama-nf4-dq", kTraining / "llama", scratch.path / "out");
  EXPECT_EQ(report.quantized_tensors, 0);
  AutoModelForCausalLM beside = load_from(kModels / "llama-nf4-dq"), merged = load_from(scratch.path / "out");
  beside.load_adapter(kTraining / "llama");
  const std::vector<int32_t> prompt{3, 4, 5, 6, 7};
  const auto expected = beside.logits(prompt);
  Tensor tensor(DType::f32, {static_cast<int64_t>(expected.size())});
  std::copy(expected.begin(), expected.end(), tensor.as<float>());
  EXPECT_LT(relative_error(merged.logits(prompt), tensor), 2e-2);
}

TEST(Merge, RefusesWhatDoesNotFit) {
  Scratch scratch;
  EXPECT_THROW(merge_checkpoint(kModels / "llama", kTraining / "gpt2", scratch.path / "out"), Error);
  EXPECT_THROW(merge_checkpoint(kModels / "llama", kTraining / "llama", scratch.path / "out", {.requantize = true}),
               Error);
  EXPECT_THROW(merge_checkpoint(kModels / "llama", kTraining / "llama", kModels / "llama"), Error);
  EXPECT_THROW(merge_checkpoint(kModels / "llama", kTraining / "nothing", scratch.path / "out"), Error);
  EXPECT_FALSE(fs::exists(scratch.path / "out"));
}

}  // namespace
}  // namespace nibble
