// Filters against transformers' logits processors, scans against plain loops, and the distribution of draws.
#include "generate/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "base/json.h"
#include "generate/top_k.h"

namespace nibble {
namespace {

GenerationConfig sampling() {
  GenerationConfig config;
  config.do_sample = true;
  config.top_k = 0;
  return config;
}

std::vector<float> random_logits(size_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> logits(count);
  for (float& logit : logits) logit = static_cast<float>(random.normal() * 3);
  return logits;
}

TEST(Sampler, FiltersAsTransformersDoes) {
  const Json cases = read_json(std::string(NIBBLE_TEST_DATA) + "/generate/sampler.json");
  ASSERT_GT(cases.size(), 100u);
  for (size_t i = 0; i < cases.size(); ++i) {
    const Json& entry = cases[i];
    GenerationConfig config = sampling();
    config.temperature = entry.at("temperature");
    config.top_k = entry.at("top_k");
    config.top_p = entry.at("top_p");
    config.min_p = entry.at("min_p");
    config.repetition_penalty = entry.at("repetition_penalty");
    const auto logits = entry.at("logits").get<std::vector<float>>();
    Sampler sampler(config, static_cast<int64_t>(logits.size()), 0);
    sampler.observe(entry.at("seen").get<std::vector<int32_t>>());
    std::vector<int32_t> kept;
    std::vector<float> scores;
    for (const Candidate& candidate : sampler.filter(logits)) {
      kept.push_back(candidate.token);
      scores.push_back(candidate.score);
    }
    ASSERT_EQ(kept, entry.at("kept").get<std::vector<int32_t>>()) << "case " << i;
    const auto expected = entry.at("scores").get<std::vector<float>>();
    for (size_t j = 0; j < expected.size(); ++j) EXPECT_NEAR(scores[j], expected[j], 1e-4f) << "case " << i;
  }
}

TEST(TopK, AgreesWithSorting) {
  for (const size_t count : {1u, 31u, 32u, 33u, 1000u, 5001u}) {
    std::vector<float> values = random_logits(count, count);
    for (size_t i = 0; i < count; i += 3) values[i] = std::round(values[i]);  // ties
    std::vector<int64_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)];
    });
    EXPECT_EQ(argmax(values), order[0]);
    for (const int64_t k : {1, 2, 7, 600, 5001}) {
      const auto best = top_k(values, k);
      ASSERT_EQ(best.size(), std::min<size_t>(count, static_cast<size_t>(k)));
      for (size_t i = 0; i < best.size(); ++i) EXPECT_EQ(best[i].first, order[i]) << count << " " << k;
      if (k <= static_cast<int64_t>(count)) {
        EXPECT_EQ(kth_largest(values, k), best.back().second);
      }
    }
  }
}

TEST(TopK, NanAndInfinityNeverWin) {
  const float nan = std::nanf(""), low = -std::numeric_limits<float>::infinity();
  std::vector<float> values(100, nan);
  EXPECT_EQ(argmax(values), -1);
  values[50] = low;
  EXPECT_EQ(argmax(values), -1);
  values[77] = -5;
  EXPECT_EQ(argmax(values), 77);
  EXPECT_EQ(top_k(values, 3)[0].first, 77);
  GenerationConfig config = sampling();
  Sampler sampler(config, 100, 0);
  EXPECT_EQ(sampler.next(values), 77);
  EXPECT_THROW(sampler.next(std::vector<float>(100, nan)), Error);
}

TEST(TopK, ExponentialsAreAccurate) {
  std::vector<float> values, weights(2001);
  for (int i = 0; i <= 2000; ++i) values.push_back(static_cast<float>(-i) * 0.04f);
  exponentials(values, 0.0f, weights);
  for (size_t i = 0; i < values.size(); ++i) {
    const double expected = std::exp(static_cast<double>(values[i]));
    EXPECT_NEAR(weights[i] / expected, 1.0, 3e-7) << values[i];
  }
}

TEST(Sampler, GreedyTakesTheLowestIdOnTies) {
  std::vector<float> logits(300, 1.0f);
  logits[40] = logits[200] = 2.0f;
  GenerationConfig config;
  EXPECT_EQ(Sampler(config, 300, 0).next(logits), 40);
  config.repetition_penalty = 1.5f;
  Sampler sampler(config, 300, 0);
  EXPECT_EQ(sampler.next(logits), 40);
  EXPECT_EQ(sampler.next(logits), 200) << "40 is penalized now";
}

TEST(Sampler, DrawsFollowTheProbabilities) {
  const std::vector<float> logits = {0.0f, std::log(2.0f), std::log(5.0f), -std::numeric_limits<float>::infinity()};
  GenerationConfig config = sampling();
  Sampler sampler(config, 4, 0);
  constexpr int kDraws = 80000;
  int counts[4] = {};
  for (int i = 0; i < kDraws; ++i) ++counts[sampler.next(logits)];
  const double expected[4] = {kDraws / 8.0, kDraws / 4.0, kDraws * 5 / 8.0, 0};
  double chi_square = 0;
  for (int i = 0; i < 3; ++i) chi_square += (counts[i] - expected[i]) * (counts[i] - expected[i]) / expected[i];
  EXPECT_LT(chi_square, 13.8);  // 2 degrees of freedom, one in a thousand
  EXPECT_EQ(counts[3], 0);
}

TEST(Sampler, SeedAndRowDecideTheTokens) {
  const std::vector<float> logits = random_logits(1000, 3);
  const auto draw = [&](uint64_t seed, int64_t row) {
    GenerationConfig config = sampling();
    config.seed = seed;
    Sampler sampler(config, 1000, row);
    std::vector<int32_t> tokens;
    for (int i = 0; i < 20; ++i) tokens.push_back(sampler.next(logits));
    return tokens;
  };
  EXPECT_EQ(draw(1, 0), draw(1, 0));
  EXPECT_NE(draw(1, 0), draw(2, 0));
  EXPECT_NE(draw(1, 0), draw(1, 1));
}

}  // namespace
}  // namespace nibble
