// Beam search of one prompt: the running beams, the finished ones, and when to end.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "generate/sampler.h"
#include "tokenizer/tokenizer.h"

namespace nibble {

struct Beam {
  std::vector<int32_t> tokens;  // new ones
  float score = -1e9f;          // summed log-probability; divided by the length penalty once finished
  size_t source = 0;            // the running beam it came from
  bool is_finished = false;
};

class BeamRow {
 public:
  /// All references must outlive the row. `most_new_tokens` counts instead of the config's.
  BeamRow(const GenerationConfig& config, const Tokenizer* tokenizer, const std::vector<int32_t>& prompt,
          int64_t vocab_size, int64_t most_new_tokens);

  /// One round: logits[b] (vocab) follow running beam b.
  void advance(std::span<const std::span<const float>> logits);
  bool is_done() const { return is_done_; }
  const std::vector<Beam>& running() const { return running_; }
  const Beam& best() const { return finished_.front(); }

 private:
  std::vector<Beam> find_candidates(std::span<const std::span<const float>> logits) const;
  bool is_full() const;
  bool is_complete(const Beam& beam) const;
  void update_finished(const std::vector<Beam>& candidates, const std::vector<bool>& complete);
  void update_running(std::vector<Beam> candidates, const std::vector<bool>& complete);
  float normalized(float score, int64_t length) const;

  const GenerationConfig& config_;
  const Tokenizer* tokenizer_;
  const std::vector<int32_t>& prompt_;
  int64_t vocab_size_, most_new_tokens_;
  std::vector<Beam> running_, finished_;  // num_beams each, best first
  int64_t length_ = 0;                    // of the running beams
  bool can_improve_ = true;
  bool is_done_ = false;
};

}  // namespace nibble
