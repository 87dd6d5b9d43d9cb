// Choosing the next token: transformers' logits processors in its order, then the most likely token or a random one.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/random.h"
#include "models/candidate_search.h"
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
  std::span<const int32_t> tokens() const { return tokens_; }

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
  /// The next token of logits (vocab), which may be penalized already. Errors: internal if no logit is a number.
  int32_t next(std::span<const float> logits, bool is_penalized = false);

  /// How many of the best candidates most likely decide the next token, at most `most`; 0 if it takes the whole row.
  int64_t candidates_wanted(int64_t most) const;
  /// The next token, if it follows from the best candidates of a row over the vocabulary: then it is what next() would
  /// have drawn from the whole row. If it does not, nothing has changed. Errors: as next().
  std::optional<int32_t> next_of(const models::CandidateRow& row);
  /// Tokens that the repetition penalty is for.
  std::span<const int32_t> seen() const { return seen_.tokens(); }

  /// What is left of logits (vocab) after repetition penalty, temperature, top-k, top-p and min-p, by rising id, with
  /// their scores before softmax.
  std::span<const Candidate> filter(std::span<const float> logits, bool is_penalized = false);
  /// The same from the best of a row; false if they do not decide it.
  bool filter_best(const models::CandidateRow& row);
  std::span<const Candidate> filtered() const { return candidates_; }

 private:
  void take_best(const models::CandidateRow& row, bool& is_whole, float& bound);
  bool keep_best_top_k(float bound);
  bool keep_best_top_p(float mass, float bound);
  void keep_top_p();
  void keep_min_p();
  int32_t draw();
  int32_t checked(int32_t token);

  GenerationConfig config_;
  int64_t vocab_size_;
  SeenTokens seen_;
  Random random_;
  std::vector<float> scores_;
  std::vector<Candidate> candidates_;
  std::vector<float> weights_;
};

}  // namespace nibble
