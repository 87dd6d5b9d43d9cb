// Beam search of one prompt.
#include "generate/beam_row.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "generate/text_stream.h"
#include "generate/top_k.h"

namespace nibble {
namespace {

/// Added to scores that must not be chosen; in fp32 as transformers does, so that the order among them agrees, too.
constexpr float kExcluded = -1e9f;

/// Keeps the `count` best, the earlier one on ties.
void keep_best(std::vector<Beam>& beams, size_t count) {
  std::stable_sort(beams.begin(), beams.end(), [](const Beam& a, const Beam& b) { return a.score > b.score; });
  beams.resize(std::min(beams.size(), count));
}

}  // namespace

BeamRow::BeamRow(const GenerationConfig& config, const Tokenizer* tokenizer, const std::vector<int32_t>& prompt,
                 int64_t vocab_size, int64_t most_new_tokens)
    : config_(config),
      tokenizer_(tokenizer),
      prompt_(prompt),
      vocab_size_(vocab_size),
      most_new_tokens_(most_new_tokens) {
  running_.resize(static_cast<size_t>(config.num_beams));
  running_[0].score = 0;  // the beams are equal at first: only one counts
  finished_.resize(running_.size());
}

float BeamRow::normalized(float score, int64_t length) const {
  return score / static_cast<float>(std::pow(static_cast<double>(length), static_cast<double>(config_.length_penalty)));
}

void BeamRow::advance(std::span<const std::span<const float>> logits) {
  std::vector<Beam> candidates = find_candidates(logits);
  ++length_;
  std::vector<bool> complete(candidates.size());
  for (size_t i = 0; i < candidates.size(); ++i) complete[i] = is_complete(candidates[i]);
  update_finished(candidates, complete);
  const bool is_exhausted = std::find(complete.begin(), complete.end(), false) == complete.end();
  update_running(std::move(candidates), complete);

  const bool all_finished = is_full();
  // Could the best running beam still beat the worst finished one, at its present length?
  const float worst = all_finished ? finished_.back().score : kExcluded;
  can_improve_ = can_improve_ && normalized(running_[0].score, length_) > worst;
  is_done_ = is_exhausted || !can_improve_ || (all_finished && config_.early_stopping);
}

std::vector<Beam> BeamRow::find_candidates(std::span<const std::span<const float>> logits) const {
  const size_t beams = running_.size();
  const size_t wanted = std::max<size_t>(2, 1 + config_.eos_token_id.size()) * beams;
  struct Choice {
    float score;
    size_t beam;
    int64_t token;
  };
  std::vector<Choice> choices;
  std::vector<float> scores;
  for (size_t b = 0; b < beams; ++b) {
    scores.assign(logits[b].begin(), logits[b].end());
    if (argmax(scores) < 0) fail(ErrorCode::internal, "none of {} logits is a number", scores.size());
    log_softmax(scores);
    if (config_.repetition_penalty != 1.0f) {
      SeenTokens seen(vocab_size_);
      for (const int32_t token : prompt_) seen.add(token);
      for (const int32_t token : running_[b].tokens) seen.add(token);
      seen.penalize(config_.repetition_penalty, scores);
    }
    for (float& score : scores) score += running_[b].score;
    for (const auto& [token, score] : top_k(scores, static_cast<int64_t>(wanted))) choices.push_back({score, b, token});
  }
  std::stable_sort(choices.begin(), choices.end(), [](const Choice& a, const Choice& b) { return a.score > b.score; });
  choices.resize(std::min(choices.size(), wanted));
  std::vector<Beam> candidates;
  for (const Choice& choice : choices) {
    Beam beam{running_[choice.beam].tokens, choice.score, choice.beam};
    beam.tokens.push_back(static_cast<int32_t>(choice.token));
    candidates.push_back(std::move(beam));
  }
  return candidates;
}

bool BeamRow::is_full() const {
  return std::all_of(finished_.begin(), finished_.end(), [](const Beam& beam) { return beam.is_finished; });
}

bool BeamRow::is_complete(const Beam& beam) const {
  if (length_ >= most_new_tokens_) return true;
  const auto& eos = config_.eos_token_id;
  if (std::find(eos.begin(), eos.end(), beam.tokens.back()) != eos.end()) return true;
  if (config_.stop.empty()) return false;
  const std::string text = tokenizer_->decode(beam.tokens, DecodeOptions{.skip_special_tokens = true});
  return find_stop(text, config_.stop) != std::string::npos;
}

/// The best num_beams of the finished so far and the candidates that just ended.
void BeamRow::update_finished(const std::vector<Beam>& candidates, const std::vector<bool>& complete) {
  if (!can_improve_ || (config_.early_stopping && is_full())) return;
  // Candidates beyond the first num_beams only keep the search alive; they never finish.
  for (size_t i = 0; i < std::min(candidates.size(), running_.size()); ++i) {
    if (!complete[i]) continue;
    finished_.push_back(candidates[i]);
    finished_.back().score = normalized(candidates[i].score, length_);
    finished_.back().is_finished = true;
  }
  keep_best(finished_, running_.size());
}

void BeamRow::update_running(std::vector<Beam> candidates, const std::vector<bool>& complete) {
  for (size_t i = 0; i < candidates.size(); ++i) candidates[i].score += complete[i] ? kExcluded : 0.0f;
  const size_t beams = running_.size();
  keep_best(candidates, beams);
  while (candidates.size() < beams) candidates.push_back(candidates.back());  // a vocabulary smaller than the beams
  running_ = std::move(candidates);
}

}  // namespace nibble
