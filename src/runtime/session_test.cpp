// Tiny models against transformers: logits, greedy ids, batches, the cache, quantized weights.
#include "runtime/session.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "models/decoder.h"
#include "models/tiny_models.h"

namespace nibble {
namespace {

const std::filesystem::path kModels = std::filesystem::path(NIBBLE_TEST_DATA) / "models";

LoadOptions float32_options() {
  LoadOptions options;
  options.dtype = DType::f32;
  options.threads = 2;
  return options;
}

/// A model's goldens, by name.
class Goldens {
 public:
  explicit Goldens(const std::string& model) : checkpoint_(Checkpoint::open(kModels / model / "goldens.safetensors")) {}
  std::vector<int32_t> ids(const std::string& name) const { return values<int32_t>(name); }
  std::vector<float> floats(const std::string& name) const { return values<float>(name); }

 private:
  template <typename T>
  std::vector<T> values(const std::string& name) const {
    const Tensor tensor = checkpoint_->get(name);
    return {tensor.as<T>(), tensor.as<T>() + tensor.count()};
  }
  std::shared_ptr<const Checkpoint> checkpoint_;
};

/// Norm of the difference over the norm.
double norm_error(std::span<const float> found, std::span<const float> expected) {
  if (found.size() != expected.size()) return INFINITY;
  double difference = 0, norm = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    difference += std::pow(static_cast<double>(found[i]) - expected[i], 2);
    norm += std::pow(static_cast<double>(expected[i]), 2);
  }
  return std::sqrt(difference / norm);
}

/// Largest difference over the largest magnitude.
double relative_error(std::span<const float> found, std::span<const float> expected) {
  if (found.size() != expected.size()) return INFINITY;
  double difference = 0, magnitude = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    difference = std::max(difference, std::abs(static_cast<double>(found[i]) - expected[i]));
    magnitude = std::max(magnitude, std::abs(static_cast<double>(expected[i])));
  }
  return difference / magnitude;
}

int32_t argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

std::vector<int32_t> greedy(const models::Decoder& decoder, std::vector<int32_t> ids, size_t count) {
  Session session(decoder, 1, 16);  // smaller than needed: the cache has to grow
  std::span<const float> logits = session.append(0, ids);
  const int64_t sequence = 0;
  for (size_t i = 0; i < count; ++i) {
    ids.push_back(argmax(logits));
    if (i + 1 < count) logits = session.step({&sequence, 1}, {&ids.back(), 1});
  }
  return ids;
}

std::vector<int32_t> first(std::vector<int32_t> ids, size_t count) {
  ids.resize(count);
  return ids;
}

class Parity : public testing::TestWithParam<std::string> {};

TEST_P(Parity, LogitsAndGreedyAsTransformers) {
  const Goldens goldens(GetParam());
  const auto decoder = models::load_decoder(kModels / GetParam(), float32_options());
  const auto prompt = goldens.ids("prompt");
  Session session(*decoder, 1, 64);
  EXPECT_LT(relative_error(session.append_all(0, prompt), goldens.floats("logits")), 1e-4);
  EXPECT_EQ(greedy(*decoder, first(prompt, 24), 32), goldens.ids("greedy"));
}

TEST_P(Parity, BatchOfDifferentLengthsAsLeftPadded) {
  // transformers stretches every row by the longest one's length; here a row does not depend on its neighbours.
  if (GetParam() == "llama-dynamic") GTEST_SKIP();
  const Goldens goldens(GetParam());
  const auto decoder = models::load_decoder(kModels / GetParam(), float32_options());
  const auto prompt = goldens.ids("prompt"), lengths = goldens.ids("batch_lengths"),
             expected = goldens.ids("batch_greedy");
  const size_t rows = lengths.size(), count = expected.size() / rows;
  const auto vocab = static_cast<size_t>(decoder->vocab_size());
  Session session(*decoder, static_cast<int64_t>(rows), 64);
  std::vector<int32_t> next;
  std::vector<int64_t> sequences;
  for (size_t r = 0; r < rows; ++r) {
    sequences.push_back(static_cast<int64_t>(r));
    next.push_back(argmax(session.append(sequences[r], first(prompt, static_cast<size_t>(lengths[r])))));
  }
  for (size_t i = 0; i < count; ++i) {
    for (size_t r = 0; r < rows; ++r) ASSERT_EQ(next[r], expected[r * count + i]) << "row " << r << " token " << i;
    const auto logits = session.step(sequences, next);
    for (size_t r = 0; r < rows; ++r) next[r] = argmax(logits.subspan(r * vocab, vocab));
  }
}

TEST_P(Parity, StepsEqualOnePass) {
  // transformers stretches the whole pass by its length, steps by theirs.
  if (GetParam() == "llama-dynamic") GTEST_SKIP();
  const Goldens goldens(GetParam());
  const auto decoder = models::load_decoder(kModels / GetParam(), float32_options());
  const auto prompt = goldens.ids("prompt");
  const auto whole = goldens.floats("logits");
  const auto vocab = static_cast<size_t>(decoder->vocab_size());
  Session session(*decoder, 2, 4);
  session.append(1, first(prompt, 3));
  const int64_t sequence = 1;
  const int64_t renewal = decoder->spec().renewal_length;  // tokens before it are other than those of a longer sequence
  for (size_t t = 3; t < prompt.size(); ++t) {
    const auto logits = session.step({&sequence, 1}, {&prompt[t], 1});
    if (static_cast<int64_t>(t) < renewal) continue;
    ASSERT_LT(relative_error(logits, std::span(whole).subspan(t * vocab, vocab)), 1e-4) << t;
  }
  EXPECT_EQ(session.length(0), 0);
  EXPECT_EQ(session.length(1), 48);
}

INSTANTIATE_TEST_SUITE_P(Models, Parity, testing::ValuesIn(models::testing::causal_models()),
                         [](const auto& info) { return models::testing::test_name(info.param); });

TEST(Session, TruncateAndReorder) {
  const auto decoder = models::load_decoder(kModels / "llama", float32_options());
  const auto prompt = Goldens("llama").ids("prompt");
  Session session(*decoder, 2, 32);
  const auto a = first(prompt, 10);
  const std::vector<int32_t> b(prompt.begin() + 10, prompt.begin() + 25);
  session.append(0, a);
  session.append(1, b);
  const std::vector<int64_t> swap{1, 0}, both{0, 1};
  session.reorder(swap);
  EXPECT_EQ(session.length(0), 15);
  const std::vector<int32_t> next{7, 9};
  const auto together = session.step(both, next);
  const std::vector<float> of_b(together.begin(), together.begin() + decoder->vocab_size());

  Session fresh(*decoder, 1, 32);
  fresh.append(0, b);
  fresh.append(0, first(prompt, 5));
  fresh.truncate(0, 15);
  const std::vector<int32_t> seven{7};
  EXPECT_LT(relative_error(fresh.append(0, seven), of_b), 1e-5);
}

TEST(Session, RefusesBadInput) {
  const auto decoder = models::load_decoder(kModels / "llama", float32_options());
  Session session(*decoder, 1, 8);
  const std::vector<int32_t> outside{160}, negative{-1}, none, one{5};
  EXPECT_THROW(session.append(0, outside), Error);
  EXPECT_THROW(session.append(0, negative), Error);
  EXPECT_THROW(session.append(0, none), Error);
  EXPECT_THROW(session.append(1, one), Error);
  EXPECT_THROW(session.append(0, std::vector<int32_t>(129, 5)), Error);  // past max_position_embeddings
  EXPECT_EQ(session.length(0), 0);
  const std::vector<int64_t> twice{0, 0};
  const std::vector<int32_t> two{5, 6};
  EXPECT_THROW(session.step(twice, two), Error);
}

struct QuantizedCase {
  std::string model;
  const char* quant_type;
  bool nested;
  const char* golden;
};

/// The models whose goldens hold logits with quantized weights.
std::vector<std::string> quantized_models() {
  auto names = models::testing::causal_models();
  std::erase_if(names, [](const std::string& name) {
    return !Checkpoint::open(kModels / name / "goldens.safetensors")->find("logits_nf4");
  });
  return names;
}

std::vector<QuantizedCase> quantized_cases() {
  std::vector<QuantizedCase> cases;
  for (const std::string& model : quantized_models()) {
    cases.push_back({model, "nf4", false, "nf4"});
    cases.push_back({model, "fp4", false, "fp4"});
    cases.push_back({model, "nf4", true, "nf4_dq"});
  }
  return cases;
}

class Quantized : public testing::TestWithParam<QuantizedCase> {};

TEST_P(Quantized, LogitsAsTransformersWithDequantizedWeights) {
  const QuantizedCase& c = GetParam();
  const Goldens goldens(c.model);
  LoadOptions options = float32_options();
  options.quantization_config.load_in_4bit = true;
  options.quantization_config.bnb_4bit_quant_type = c.quant_type;
  options.quantization_config.bnb_4bit_use_double_quant = c.nested;
  const auto decoder = models::load_decoder(kModels / c.model, options);
  const auto start = first(goldens.ids("prompt"), 24);
  Session session(*decoder, 1, 64);
  EXPECT_LT(relative_error(session.append_all(0, start), goldens.floats(std::string("logits_") + c.golden)), 1e-4);
  EXPECT_EQ(greedy(*decoder, start, 32), goldens.ids(std::string("greedy_") + c.golden));
}

INSTANTIATE_TEST_SUITE_P(Models, Quantized, testing::ValuesIn(quantized_cases()), [](const auto& info) {
  return models::testing::test_name(info.param.model + "_" + info.param.golden);
});

TEST(LlmInt8, LogitsAsSimulatedInTorch) {
  for (const std::string& model : quantized_models()) {
    const Goldens goldens(model);
    LoadOptions options = float32_options();
    options.quantization_config.load_in_8bit = true;
    const auto decoder = models::load_decoder(kModels / model, options);
    Session session(*decoder, 1, 64);
    const auto logits = session.append_all(0, first(goldens.ids("prompt"), 24));
    // Looser than elsewhere: an activation on the edge between two integers, or at the threshold, falls to either side.
    // Noise of 1e-6 on torch's own embeddings moves these logits by 0.01.
    EXPECT_LT(norm_error(logits, goldens.floats("logits_llm_int8")), 2e-2) << model;
  }
}

TEST(Prequantized, FilesOfTransformersGiveItsLogits) {
  for (const char* model : {"llama-nf4-dq", "llama-int8"}) {
    LoadOptions options = float32_options();
    std::string warned;
    options.warning = [&](std::string_view text) { warned += text; };
    options.quantization_config.load_in_4bit = true;
    const auto decoder = models::load_decoder(kModels / model, options);
    EXPECT_NE(warned.find("quantized already"), std::string::npos);
    Session session(*decoder, 1, 64);
    const auto logits = session.append_all(0, first(Goldens("llama").ids("prompt"), 24));
    const double tolerance = std::string_view(model) == "llama-int8" ? 2e-2 : 1e-4;
    EXPECT_LT(norm_error(logits, Goldens(model).floats("logits")), tolerance) << model;
  }
}

}  // namespace
}  // namespace nibble
