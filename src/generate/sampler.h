// Choosing the next token: transformers' logits processors in its order, then the most likely token or a random one.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/random.h"
#include "nibble/generate.h"

namespace nibble {

struct Candidate {
  int32_t token;
  float score;
};

/// Ids that occurred, for the repetition penalty (Keskar et al. 2019): each counts once.
class SeenTokens {
 public:
  explicit SeenTokens(int64_t vocab_size) : is_seen_(static_cast<size_t>(vocab_size)) {}
  void add(int32_t token);
  /// Divides positive scores by `penalty` and multiplies negative ones.
  void penalize(float penalty, std::span<float> scores) const;

 private:
  std::vector<bool> is_seen_;
  std::vector<int32_t> tokens_;
};

/// State of one row. Rows draw from streams of their own.
class Sampler {
 public:
  Sampler(const GenerationConfig& config, int64_t vocab_size, int64_t row);

  /// Tells which tokens exist already (the prompt); next() adds its own.
  void observe(std::span<const int32_t> tokens);
  /// True if next() is the most likely token whatever came before.
  bool is_plain_greedy() const { return !config_.do_sample && config_.repetition_penalty == 1.0f; }
  /// The next token of logits (vocab). Errors: internal if no logit is a number.
  int32_t next(std::span<const float> logits);

  /// What is left of logits (vocab) after repetition penalty, temperature, top-k, top-p and min-p, by rising id, with
  /// their scores before softmax.
  std::span<const Candidate> filter(std::span<const float> logits);

 private:
  void keep_top_p();
  void keep_min_p();
  int32_t draw();

  GenerationConfig config_;
  SeenTokens seen_;
  Random random_;
  std::vector<float> scores_;
  std::vector<Candidate> candidates_;
  std::vector<float> weights_;
};

}  // namespace nibble
