// Tokens drawn from the best candidates of a row against those drawn from the whole row.
#include <gtest/gtest.h>

#include <limits>

#include "generate/best_of_rows.h"
#include "generate/generator.h"
#include "generate/sampler.h"
#include "generate/scripted_model.h"

namespace nibble {
namespace {

constexpr int64_t kMost = 512;

struct Outcome {
  int decided = 0, asked = 0;
};

/// Draws `rounds` tokens in both ways over logits that `make` fills.
template <typename Make>
Outcome compare(const GenerationConfig& config, int64_t vocab, int rounds, const Make& make) {
  Sampler whole(config, vocab, 1), best(config, vocab, 1);
  Random random(config.seed + 99);
  const std::vector<int32_t> prompt = {0, static_cast<int32_t>(vocab / 2), static_cast<int32_t>(vocab - 1)};
  whole.observe(prompt);
  best.observe(prompt);
  BestOfRows rows;
  Outcome outcome;
  for (int i = 0; i < rounds; ++i) {
    std::vector<float> logits(static_cast<size_t>(vocab));
    for (float& logit : logits) logit = make(random);
    const int32_t expected = whole.next(logits);
    const int64_t count = best.candidates_wanted(kMost);
    if (count == 0) return outcome;
    const std::span<const int32_t> seen = best.seen();
    const auto found = rows.find(logits, vocab, {count, config.temperature, config.repetition_penalty, {&seen, 1}});
    const auto token = best.next_of(found.row(0));
    ++outcome.asked;
    outcome.decided += token.has_value();
    EXPECT_EQ(token ? *token : best.next(logits, true), expected)
        << "round " << i << " vocab " << vocab << " top_k " << config.top_k << " top_p " << config.top_p << " min_p "
        << config.min_p << " temperature " << config.temperature << " penalty " << config.repetition_penalty;
  }
  return outcome;
}

TEST(SampleBest, TokensAreThoseOfTheWholeRow) {
  uint64_t seed = 0;
  for (const int64_t vocab : {3, 50, 700, 5000})
    for (const int64_t top_k : {0, 1, 7, 50, 400, 600})
      for (const float top_p : {1.0f, 0.9f, 0.3f})
        for (const float min_p : {0.0f, 0.05f, 0.5f})
          for (const float penalty : {1.0f, 1.3f, 0.8f}) {
            GenerationConfig config;
            config.do_sample = true;
            config.top_k = top_k;
            config.top_p = top_p;
            config.min_p = min_p;
            config.repetition_penalty = penalty;
            config.seed = ++seed;
            config.temperature = seed % 3 == 0 ? 1.0f : seed % 3 == 1 ? 0.6f : 1.7f;
            compare(config, vocab, 2, [](Random& random) { return static_cast<float>(random.normal() * 3); });
            // Many equal scores, some of them no numbers.
            compare(config, vocab, 2, [](Random& random) {
              const double x = std::round(random.normal() * 2);
              return x > 3 ? -std::numeric_limits<float>::infinity() : static_cast<float>(x);
            });
          }
}

TEST(SampleBest, PeakedRowsAreDecidedByTheirCandidates) {
  const auto peaked = [](Random& random) { return static_cast<float>(random.normal() * 3.5); };
  GenerationConfig config;
  config.do_sample = true;
  config.seed = 7;
  const auto all_decided = [&](const char* label) {
    const Outcome outcome = compare(config, 32000, 20, peaked);
    EXPECT_EQ(outcome.asked, 20) << label;
    EXPECT_EQ(outcome.decided, 20) << label;
  };
  all_decided("top-k");
  config.repetition_penalty = 1.2f;
  all_decided("top-k and penalty");
  config.top_p = 0.9f;
  all_decided("top-k and top-p");
  config.top_k = 0;
  config.temperature = 0.5f;
  all_decided("top-p");
  config.top_p = 1.0f;
  config.min_p = 0.05f;
  all_decided("min-p");
  config.do_sample = false;
  all_decided("greedy with penalty");
}

TEST(SampleBest, TopPIsRefusedWhereTheMassIsInDoubt) {
  GenerationConfig config;
  config.do_sample = true;
  config.top_k = 0;
  config.top_p = 0.5f;
  Sampler sampler(config, 1000, 0);
  // Two equal candidates of a row whose other tokens have no mass to speak of: half of it ends after the first.
  const std::vector<int32_t> tokens = {4, 9, 1};
  const std::vector<float> values = {5, 5, -60};
  EXPECT_FALSE(sampler.filter_best({tokens, values, 2.0f}));
  ASSERT_TRUE(sampler.filter_best({tokens, values, 2.001f}));
  EXPECT_EQ(sampler.filtered().size(), 2u);
  ASSERT_TRUE(sampler.filter_best({tokens, values, 1.999f}));
  ASSERT_EQ(sampler.filtered().size(), 1u);
  EXPECT_EQ(sampler.filtered()[0].token, 9) << "of equals the lower id is dropped first";
}

/// A scripted model that finds candidates as a GPU does.
class SearchingModel final : public TokenModel {
 public:
  explicit SearchingModel(ScriptedModel model) : model_(std::move(model)) {}
  std::span<const float> append(int64_t sequence, std::span<const int32_t> tokens) override {
    return model_.append(sequence, tokens);
  }
  std::span<const float> step(std::span<const int64_t> sequences, std::span<const int32_t> tokens) override {
    return model_.step(sequences, tokens);
  }
  int64_t most_candidates() const override { return kMost; }
  models::CandidateRows step_candidates(std::span<const int64_t> sequences, std::span<const int32_t> tokens,
                                        const models::CandidateRequest& request) override {
    ++searches;
    const auto logits = model_.step(sequences, tokens);
    logits_.assign(logits.begin(), logits.end());
    return best_.find(logits_, vocab_size(), request);
  }
  std::span<const float> searched_row(size_t index) override {
    const auto vocab = static_cast<size_t>(vocab_size());
    return std::span(logits_).subspan(index * vocab, vocab);
  }
  void reorder(std::span<const int64_t> source) override { model_.reorder(source); }
  int64_t vocab_size() const override { return model_.vocab_size(); }

  int searches = 0;

 private:
  ScriptedModel model_;
  BestOfRows best_;
  std::vector<float> logits_;
};

TEST(SampleBest, TextsAreThoseOfTheWholeRows) {
  constexpr size_t kVocab = 600;
  Random random(5);
  ScriptedModel::Table first(kVocab, std::vector<float>(kVocab)), second = first;
  for (auto* table : {&first, &second})
    for (auto& row : *table)
      for (float& x : row) x = static_cast<float>(random.normal() * 2);
  const std::vector<std::vector<int32_t>> prompts = {{1, 2}, {3}, {599, 4, 5}};
  for (const int64_t top_k : {50, 0})
    for (const float penalty : {1.0f, 1.5f})
      for (const bool do_sample : {true, false}) {
        GenerationConfig config;
        config.max_new_tokens = 30;
        config.do_sample = do_sample;
        config.top_k = top_k;
        config.top_p = 0.8f;
        config.repetition_penalty = penalty;
        config.eos_token_id = {17, 18, 19, 20, 21, 22, 23};  // rows end at different times
        config.seed = 3;
        ScriptedModel plain(first, second, 3);
        SearchingModel searching(ScriptedModel(first, second, 3));
        EXPECT_EQ(generate(plain, nullptr, prompts, config).sequences,
                  generate(searching, nullptr, prompts, config).sequences);
        EXPECT_EQ(searching.searches > 0, do_sample || penalty != 1.0f);
      }
}

}  // namespace
}  // namespace nibble
