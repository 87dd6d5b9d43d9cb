// A running model: one KV cache per sequence, tokens in, logits out.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "models/candidate_search.h"
#include "models/decoder.h"

namespace nibble {

/// State of up to `sequences` sequences over one model. Sequences have lengths of their own: there is no padding.
/// Not thread-safe. The returned spans live until the next call.
class Session {
 public:
  /// Reserves room for `max_tokens` tokens a sequence (it grows if needed up to the model's context).
  Session(const models::Decoder& decoder, int64_t sequences, int64_t max_tokens, bool batch_invariant = false);
  ~Session();

  /// Encoder-decoder: runs the encoder once on the source of `sequences`, which are empty. Needed before their tokens.
  void encode(std::span<const int64_t> sequences, std::span<const int32_t> ids);

  /// Appends `tokens` to one sequence; returns the logits (vocab) after the last of them. Long prompts run in chunks
  /// between which cancellation is seen.
  std::span<const float> append(int64_t sequence, std::span<const int32_t> tokens);
  /// The same, returning logits (tokens, vocab) of every position.
  std::vector<float> append_all(int64_t sequence, std::span<const int32_t> tokens);
  /// One token for each of `sequences`; returns logits (sequences.size(), vocab).
  std::span<const float> step(std::span<const int64_t> sequences, std::span<const int32_t> tokens);

  /// True on a GPU: step_greedy() spares the way of the logits to main memory.
  bool can_choose() const;
  /// As step(), returning only the most likely token of each: the lowest of equals, -1 if no logit is a number.
  std::span<const int32_t> step_greedy(std::span<const int64_t> sequences, std::span<const int32_t> tokens);

  /// The most candidates that step_candidates() may be asked for; 0 on the CPU.
  int64_t most_candidates() const;
  /// As step(), returning only the best tokens of each.
  models::CandidateRows step_candidates(std::span<const int64_t> sequences, std::span<const int32_t> tokens,
                                        const models::CandidateRequest& request);
  /// All logits of row `index` of the last step_candidates(), after the penalty; its candidates stay.
  std::span<const float> searched_row(size_t index);

  int64_t length(int64_t sequence) const;
  void truncate(int64_t sequence, int64_t length);
  /// Sequence i becomes a copy of what sequence source[i] was (beam search).
  void reorder(std::span<const int64_t> source);
  int64_t vocab_size() const;
  /// The most tokens of a sequence.
  int64_t context() const;
  int64_t cache_bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace nibble
