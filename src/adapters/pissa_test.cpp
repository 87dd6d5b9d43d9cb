// Starts as PEFT's, what re-quantizing is left to do, and the way to the original weights and back.
#include "adapters/pissa.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "adapters/peft_files.h"
#include "base/error.h"
#include "models/layer.h"
#include "nn/dora.h"

namespace nibble::adapters {
namespace {

namespace fs = std::filesystem;
const fs::path kLlama = fs::path(NIBBLE_TEST_DATA) / "models/llama", kPeft = fs::path(NIBBLE_TEST_DATA) / "pissa",
               kOlora = fs::path(NIBBLE_TEST_DATA) / "olora";

std::unique_ptr<models::Decoder> load(bool is_4bit = false) {
  LoadOptions options;
  options.dtype = DType::f32;
  options.threads = 1;
  options.quantization_config.load_in_4bit = is_4bit;
  return models::load_decoder(kLlama, options);
}

/// |a - b - scale * left right| / |a|.
double error_of(const Tensor& a, const Tensor& b, const nn::Lora* lora = nullptr) {
  double sum = 0, square = 0;
  for (int64_t i = 0; i < a.count(); ++i) {
    double value = static_cast<double>(a.as<float>()[i]) - static_cast<double>(b.as<float>()[i]);
    const int64_t cols = a.dim(1), rank = lora ? lora->a->value.dim(0) : 0;
    for (int64_t k = 0; k < rank; ++k)
      value -= static_cast<double>(lora->scale) * static_cast<double>(lora->b->value.as<float>()[i / cols * rank + k]) *
               static_cast<double>(lora->a->value.as<float>()[k * cols + i % cols]);
    sum += value * value;
    square += std::pow(static_cast<double>(a.as<float>()[i]), 2);
  }
  return std::sqrt(sum / square);
}

Adapter started(const models::Decoder& decoder, const std::string& start, int64_t rank = 4) {
  LoraConfig config = parse_lora_config(read_json(kPeft / "adapter_config.json"), "here");
  config.init_lora_weights = start;
  config.r = rank;
  Adapter adapter = create_adapter(decoder.spec(), config, 1);
  start_from_principal_part(adapter, decoder, *Checkpoint::open(kLlama), 1);
  return adapter;
}

TEST(Pissa, ResidualsAreThoseOfPeft) {
  const auto decoder = load();
  const auto original = Checkpoint::open(kLlama);
  for (const std::string start : {"pissa", "pissa_niter_16", "olora"}) {
    const auto goldens = Checkpoint::open((start == "olora" ? kOlora : kPeft) / "goldens.safetensors");
    int count = 0;
    for (const AdapterLayer& layer : started(*decoder, start).layers) {
      const std::string name = layer.module + ".weight";
      const Tensor& residual = std::get<nn::DenseWeight>(*layer.residual).weight;
      EXPECT_LT(error_of(original->get(name).to(DType::f32), residual, &layer.lora), 1e-6) << name;
      if (!goldens->find(name)) continue;
      EXPECT_LT(error_of(residual, goldens->get(name)), 1e-3) << name;
      ++count;
    }
    EXPECT_EQ(count, 2);
  }
}

TEST(Pissa, QuantizedResidualsAreCloserToTheOriginal) {
  const auto decoder = load(true);
  const auto original = Checkpoint::open(kLlama);
  for (const AdapterLayer& layer :
       started(*decoder, "pissa", 32).layers) {  // random weights: half of the ranks hold most
    const Tensor weight = original->get(layer.module + ".weight").to(DType::f32);
    nn::Linear linear = models::bind_linear(decoder->backend(), decoder->spec(), decoder->weights(), layer.module);
    const double before = error_of(weight, nn::plain_weight(decoder->backend(), linear));
    ASSERT_TRUE(std::holds_alternative<nn::Weight4Bit>(*layer.residual));
    EXPECT_FALSE(layer.start_a);
    linear.weight = *layer.residual;
    EXPECT_LT(error_of(weight, nn::plain_weight(decoder->backend(), linear), &layer.lora), 0.7 * before);
  }
}

TEST(Pissa, OntoTheOriginalAndBack) {
  const auto decoder = load();
  Adapter adapter = started(*decoder, "pissa");
  for (bool is_rs : {false, true}) {
    adapter.config.use_rslora = is_rs;
    adapter.config.rank_pattern = {{"q_proj", 6}};
    const Adapter there = onto_original(adapter), back = trained_half(there);
    EXPECT_EQ(there.config.r, 8);
    EXPECT_NEAR(static_cast<double>(rank_and_scale(there.config, "layers.0.down_proj").scale),
                static_cast<double>(rank_and_scale(adapter.config, "layers.0.down_proj").scale), 1e-6);
    EXPECT_EQ(rank_and_scale(there.config, "layers.0.q_proj").rank, 12);
    for (size_t i = 0; i < adapter.layers.size(); ++i) {
      EXPECT_FALSE(there.layers[i].residual);
      const nn::Lora &was = adapter.layers[i].lora, &is = back.layers[i].lora;
      EXPECT_TRUE(std::equal(was.a->value.bytes().begin(), was.a->value.bytes().end(), is.a->value.bytes().begin()));
      EXPECT_TRUE(std::equal(was.b->value.bytes().begin(), was.b->value.bytes().end(), is.b->value.bytes().begin()));
    }
  }
}

TEST(Pissa, WrongNamesAndRanksAreRefused) {
  for (const char* name : {"pissa_", "pissa_niter_", "pissa_niter_x", "pissa_niter_-1", "pissa_niter_4x"})
    EXPECT_THROW(LoraConfig{.init_lora_weights = name}.validate(), Error) << name;
  EXPECT_NO_THROW(LoraConfig{.init_lora_weights = "pissa_niter_4"}.validate());
  const auto decoder = load();
  Adapter adapter = create_adapter(decoder->spec(), {.r = 65, .init_lora_weights = "pissa"}, 1);
  EXPECT_THROW(start_from_principal_part(adapter, *decoder, *Checkpoint::open(kLlama), 1), Error);
  adapter.config.init_lora_weights = "pissa_niter_2";
  EXPECT_THROW(take_principal_part_off(adapter, decoder->backend(), {}), Error);
}

}  // namespace
}  // namespace nibble::adapters
