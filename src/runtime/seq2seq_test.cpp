// Tiny encoder-decoders against transformers: encoder, logits, greedy ids, batches of sources, quantized weights.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "models/decoder.h"
#include "models/tiny_models.h"
#include "runtime/session.h"

namespace nibble {
namespace {

const std::filesystem::path kModels = std::filesystem::path(NIBBLE_TEST_DATA) / "models";
constexpr int64_t kFirst = 0;

/// A model's goldens, by name.
class Goldens {
 public:
  explicit Goldens(const std::string& model) : checkpoint_(Checkpoint::open(kModels / model / "seq2seq.safetensors")) {}
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

/// The root of the summed squares of the difference, or with `is_largest` its largest magnitude; over that of
/// `expected`.
double relative_error(std::span<const float> found, std::span<const float> expected, bool is_largest = true) {
  if (found.size() != expected.size()) return INFINITY;
  double difference = 0, size = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    const double d = std::abs(static_cast<double>(found[i]) - expected[i]), e = std::abs(expected[i]);
    difference = is_largest ? std::max(difference, d) : difference + d * d;
    size = is_largest ? std::max(size, e) : size + e * e;
  }
  return is_largest ? difference / size : std::sqrt(difference / size);
}

int32_t argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

LoadOptions float32_options() {
  LoadOptions options;
  options.dtype = DType::f32;
  options.threads = 2;
  return options;
}

std::vector<float> forced_logits(const models::Decoder& decoder, const Goldens& goldens) {
  Session session(decoder, 1, 8);
  session.encode({&kFirst, 1}, goldens.ids("source"));
  return session.append_all(0, goldens.ids("target"));
}

std::vector<int32_t> greedy(const models::Decoder& decoder, std::span<const int32_t> source, size_t count) {
  Session session(decoder, 1, 8);  // smaller than needed: the cache has to grow
  session.encode({&kFirst, 1}, source);
  std::vector<int32_t> ids{0};
  while (ids.size() <= count) ids.push_back(argmax(session.append(0, {&ids.back(), 1})));
  return ids;
}

class Seq2Seq : public testing::TestWithParam<std::string> {};

TEST_P(Seq2Seq, EncoderLogitsAndGreedyAsTransformers) {
  const Goldens goldens(GetParam());
  const auto decoder = models::load_decoder(kModels / GetParam(), float32_options());
  const auto source = goldens.ids("source");
  std::vector<float> encoded(source.size() * static_cast<size_t>(decoder->spec().hidden_size));
  models::Workspace workspace(decoder->backend());
  decoder->encode(source, workspace, false, encoded.data());
  EXPECT_LT(relative_error(encoded, goldens.floats("encoded")), 1e-4);
  EXPECT_LT(relative_error(forced_logits(*decoder, goldens), goldens.floats("logits")), 1e-4);
  EXPECT_EQ(greedy(*decoder, source, 32), goldens.ids("greedy"));
}

TEST_P(Seq2Seq, StepsEqualOnePass) {
  const Goldens goldens(GetParam());
  const auto decoder = models::load_decoder(kModels / GetParam(), float32_options());
  const auto target = goldens.ids("target");
  const auto whole = goldens.floats("logits");
  const auto vocab = static_cast<size_t>(decoder->vocab_size());
  Session session(*decoder, 1, 4);
  session.encode({&kFirst, 1}, goldens.ids("source"));
  for (size_t t = 0; t < target.size(); ++t) {
    const auto logits = session.step({&kFirst, 1}, {&target[t], 1});
    ASSERT_LT(relative_error(logits, std::span(whole).subspan(t * vocab, vocab)), 1e-4) << t;
  }
}

TEST_P(Seq2Seq, BatchOfDifferentSourcesAsPadded) {
  const Goldens goldens(GetParam());
  const auto decoder = models::load_decoder(kModels / GetParam(), float32_options());
  const auto source = goldens.ids("source"), lengths = goldens.ids("batch_lengths"),
             expected = goldens.ids("batch_greedy");
  const size_t rows = lengths.size(), count = expected.size() / rows;
  const auto vocab = static_cast<size_t>(decoder->vocab_size());
  Session session(*decoder, static_cast<int64_t>(rows), 8);
  std::vector<int64_t> sequences;
  for (size_t r = 0; r < rows; ++r) {
    sequences.push_back(static_cast<int64_t>(r));
    session.encode({&sequences[r], 1}, std::span(source).first(static_cast<size_t>(lengths[r])));
  }
  std::vector<int32_t> next(rows, 0);
  for (size_t i = 0; i < count; ++i) {
    for (size_t r = 0; r < rows; ++r) ASSERT_EQ(next[r], expected[r * count + i]) << "row " << r << " token " << i;
    const auto logits = session.step(sequences, next);
    for (size_t r = 0; r < rows; ++r) next[r] = argmax(logits.subspan(r * vocab, vocab));
  }
}

TEST_P(Seq2Seq, QuantizedWeights) {
  const Goldens goldens(GetParam());
  struct Level {
    const char* golden;
    BitsAndBytesConfig config;
  };
  for (const Level& level :
       {Level{"nf4", {.load_in_4bit = true, .bnb_4bit_quant_type = "nf4"}},
        Level{"fp4", {.load_in_4bit = true, .bnb_4bit_quant_type = "fp4"}},
        Level{"nf4_dq", {.load_in_4bit = true, .bnb_4bit_quant_type = "nf4", .bnb_4bit_use_double_quant = true}}}) {
    LoadOptions options = float32_options();
    options.quantization_config = level.config;
    const auto decoder = models::load_decoder(kModels / GetParam(), options);
    const std::string golden = level.golden;
    EXPECT_LT(relative_error(forced_logits(*decoder, goldens), goldens.floats("logits_" + golden)), 1e-4) << golden;
    EXPECT_EQ(greedy(*decoder, goldens.ids("source"), 32), goldens.ids("greedy_" + golden)) << golden;
  }
  LoadOptions options = float32_options();
  options.quantization_config.load_in_8bit = true;
  const auto decoder = models::load_decoder(kModels / GetParam(), options);
  // Looser: an activation on the edge between two integers falls to either side.
  EXPECT_LT(relative_error(forced_logits(*decoder, goldens), goldens.floats("logits_llm_int8"), false), 2e-2);
}

TEST_P(Seq2Seq, ReorderedSequencesKeepTheirSource) {
  const Goldens goldens(GetParam());
  const auto decoder = models::load_decoder(kModels / GetParam(), float32_options());
  const auto source = goldens.ids("source");
  const auto expected = greedy(*decoder, source, 4);
  Session session(*decoder, 2, 8);
  const std::vector<int64_t> one{1}, swap{1, 0};
  session.encode({&kFirst, 1}, source);
  session.encode(one, std::span(source).first(5));
  session.append(0, std::span(expected).first(2));
  session.append(1, std::span(expected).first(1));
  session.reorder(swap);
  EXPECT_EQ(argmax(session.append(1, std::span(expected).subspan(2, 1))), expected[3]);
}

INSTANTIATE_TEST_SUITE_P(Models, Seq2Seq, testing::ValuesIn(models::testing::tiny_models("seq2seq.safetensors")),
                         [](const auto& info) { return models::testing::test_name(info.param); });

TEST(Seq2SeqSession, RefusesBadInput) {
  const auto t5 = models::load_decoder(kModels / "t5", float32_options());
  Session session(*t5, 1, 8);
  const std::vector<int32_t> one{5}, none, outside{160};
  EXPECT_THROW(session.append(0, one), Error);  // no source yet
  EXPECT_THROW(session.encode({&kFirst, 1}, none), Error);
  EXPECT_THROW(session.encode({&kFirst, 1}, outside), Error);
  session.encode({&kFirst, 1}, one);
  session.append(0, one);
  EXPECT_THROW(session.encode({&kFirst, 1}, one), Error);  // begun already
  const auto llama = models::load_decoder(kModels / "llama", float32_options());
  Session without(*llama, 1, 8);
  EXPECT_THROW(without.encode({&kFirst, 1}, one), Error);
}

}  // namespace
}  // namespace nibble
