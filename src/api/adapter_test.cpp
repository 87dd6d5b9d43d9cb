// Adapters beside the weights: the logits of PEFT, switching, and the base model again.
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "nibble/model.h"

namespace nibble {
namespace {

namespace fs = std::filesystem;
const fs::path kModels = fs::path(NIBBLE_TEST_DATA) / "models", kTraining = fs::path(NIBBLE_TEST_DATA) / "training";

AutoModelForCausalLM load(const std::string& name) {
  LoadOptions options;
  options.dtype = DType::f32;
  options.threads = 2;
  return AutoModelForCausalLM::from_pretrained(kModels / name, options);
}

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

}  // namespace
}  // namespace nibble
