// What generation needs of a running model: a Session in production, a script in tests.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "nibble/generate.h"
#include "runtime/session.h"

namespace nibble {

/// Sequences of tokens with the logits that follow them. Returned spans live until the next call.
class TokenModel {
 public:
  virtual ~TokenModel() = default;
  /// Appends to one sequence; logits (vocab) after the last token.
  virtual std::span<const float> append(int64_t sequence, std::span<const int32_t> tokens) = 0;
  /// One token for each of `sequences`; logits (sequences.size(), vocab).
  virtual std::span<const float> step(std::span<const int64_t> sequences, std::span<const int32_t> tokens) = 0;
  /// True if step_greedy() is there: the most likely token of each sequence, without the logits.
  virtual bool can_choose() const { return false; }
  virtual std::span<const int32_t> step_greedy(std::span<const int64_t>, std::span<const int32_t>) { return {}; }
  /// The most candidates that step_candidates() may be asked for; 0: it is not there.
  virtual int64_t most_candidates() const { return 0; }
  /// As step(), with the best tokens of each sequence alone.
  virtual models::CandidateRows step_candidates(std::span<const int64_t>, std::span<const int32_t>,
                                                const models::CandidateRequest&) {
    return {};
  }
  /// All logits of row `index` of the last step_candidates(), after the penalty; its candidates stay.
  virtual std::span<const float> searched_row(size_t) { return {}; }
  /// Sequence i becomes a copy of what sequence source[i] was; one source for every sequence.
  virtual void reorder(std::span<const int64_t> source) = 0;
  virtual int64_t vocab_size() const = 0;
  /// The most tokens of a sequence.
  virtual int64_t context() const { return INT64_MAX; }
};

/// New tokens that follow a prompt: as many as `config` wants, fewer where the model's context ends.
inline int64_t most_new_tokens(const TokenModel& model, const GenerationConfig& config, size_t prompt_tokens) {
  return std::min(config.max_new_tokens, model.context() - static_cast<int64_t>(prompt_tokens));
}

class SessionModel final : public TokenModel {
 public:
  explicit SessionModel(Session& session) : session_(session) {}
  std::span<const float> append(int64_t sequence, std::span<const int32_t> tokens) override {
    return session_.append(sequence, tokens);
  }
  std::span<const float> step(std::span<const int64_t> sequences, std::span<const int32_t> tokens) override {
    return session_.step(sequences, tokens);
  }
  bool can_choose() const override { return session_.can_choose(); }
  std::span<const int32_t> step_greedy(std::span<const int64_t> sequences, std::span<const int32_t> tokens) override {
    return session_.step_greedy(sequences, tokens);
  }
  int64_t most_candidates() const override { return session_.most_candidates(); }
  models::CandidateRows step_candidates(std::span<const int64_t> sequences, std::span<const int32_t> tokens,
                                        const models::CandidateRequest& request) override {
    return session_.step_candidates(sequences, tokens, request);
  }
  std::span<const float> searched_row(size_t index) override { return session_.searched_row(index); }
  void reorder(std::span<const int64_t> source) override { session_.reorder(source); }
  int64_t vocab_size() const override { return session_.vocab_size(); }
  int64_t context() const override { return session_.context(); }

 private:
  Session& session_;
};

}  // namespace nibble
