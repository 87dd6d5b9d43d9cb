// Choosing the next token.
#include "generate/sampler.h"

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "generate/top_k.h"

namespace nibble {

void SeenTokens::add(int32_t token) {
  const auto index = static_cast<size_t>(token);
  if (index >= is_seen_.size() || is_seen_[index]) return;
  is_seen_[index] = true;
  tokens_.push_back(token);
}

void SeenTokens::penalize(float penalty, std::span<float> scores) const {
  for (const int32_t token : tokens_) {
    float& score = scores[static_cast<size_t>(token)];
    score = score < 0 ? score * penalty : score / penalty;
  }
}

Sampler::Sampler(const GenerationConfig& config, int64_t vocab_size, int64_t row)
    : config_(config),
      vocab_size_(vocab_size),
      seen_(vocab_size),
      random_(config.seed + static_cast<uint64_t>(row) * 0xd1342543de82ef95u) {}

void Sampler::observe(std::span<const int32_t> tokens) {
  if (config_.repetition_penalty == 1.0f) return;
  for (const int32_t token : tokens) seen_.add(token);
}

/// Errors: internal for what no logit led to.
int32_t Sampler::checked(int32_t token) {
  if (token < 0) fail(ErrorCode::internal, "none of {} logits is a number", vocab_size_);
  observe({&token, 1});
  return token;
}

int32_t Sampler::next(std::span<const float> logits, bool is_penalized) {
  int32_t token = -1;
  if (config_.do_sample) {
    filter(logits, is_penalized);
    token = draw();
  } else if (is_penalized || config_.repetition_penalty == 1.0f) {
    token = static_cast<int32_t>(argmax(logits));
  } else {
    scores_.assign(logits.begin(), logits.end());
    seen_.penalize(config_.repetition_penalty, scores_);
    token = static_cast<int32_t>(argmax(scores_));
  }
  return checked(token);
}

std::span<const Candidate> Sampler::filter(std::span<const float> logits, bool is_penalized) {
  scores_.assign(logits.begin(), logits.end());
  if (!is_penalized && config_.repetition_penalty != 1.0f) seen_.penalize(config_.repetition_penalty, scores_);
  if (config_.temperature != 1.0f) {
    for (float& score : scores_) score /= config_.temperature;
  }
  candidates_.clear();
  const auto count = static_cast<int64_t>(scores_.size());
  const bool has_top_k = config_.top_k > 0 && config_.top_k < count;
  // Scores equal to the k-th stay, too.
  const float least = has_top_k ? kth_largest(scores_, config_.top_k) : -std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < scores_.size(); ++i) {
    const bool is_number = scores_[i] > -std::numeric_limits<float>::infinity();
    if (is_number && scores_[i] >= least) candidates_.push_back({static_cast<int32_t>(i), scores_[i]});
  }
  if (config_.top_p < 1.0f) keep_top_p();
  if (config_.min_p > 0.0f) keep_min_p();
  return candidates_;
}

namespace {

/// exp(score - maximum) of each; returns their sum.
double weigh(std::span<const Candidate> candidates, std::vector<float>& weights) {
  weights.resize(candidates.size());
  float maximum = -std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < candidates.size(); ++i) {
    weights[i] = candidates[i].score;
    maximum = candidates[i].score > maximum ? candidates[i].score : maximum;
  }
  return exponentials(weights, maximum, weights);
}

/// Drops the candidates whose weight is below `least`.
void keep_at_least(float least, std::vector<Candidate>& candidates, const std::vector<float>& weights) {
  size_t kept = 0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (weights[i] >= least) candidates[kept++] = candidates[i];
  }
  candidates.resize(kept);
}

}  // namespace

/// Drops the least likely while they have at most 1 - top_p together; one stays. Of equal scores lower ids go first,
/// as transformers' rising stable sort has them.
void Sampler::keep_top_p() {
  if (candidates_.empty()) return;
  const double sum = weigh(candidates_, weights_);
  const double dropped_mass = (1.0 - static_cast<double>(config_.top_p)) * sum;
  // What is below an even share of the dropped mass is dropped for certain and need not be sorted.
  const auto certain = static_cast<float>(dropped_mass / static_cast<double>(candidates_.size()) * (1 - 1e-6));
  double mass = 0;
  std::vector<std::pair<float, int32_t>> order;  // weight, position
  for (size_t i = 0; i < candidates_.size(); ++i) {
    if (weights_[i] < certain) {
      mass += static_cast<double>(weights_[i]);
    } else {
      order.emplace_back(weights_[i], static_cast<int32_t>(i));
    }
  }
  std::sort(order.begin(), order.end(), [&](const auto& a, const auto& b) {
    const float x = candidates_[static_cast<size_t>(a.second)].score,
                y = candidates_[static_cast<size_t>(b.second)].score;
    return x != y ? x < y : a.second < b.second;
  });
  size_t first = 0;
  while (first + 1 < order.size() && mass + static_cast<double>(order[first].first) <= dropped_mass) {
    mass += static_cast<double>(order[first++].first);
  }
  std::vector<int32_t> kept;
  for (size_t i = first; i < order.size(); ++i) kept.push_back(order[i].second);
  std::sort(kept.begin(), kept.end());
  for (size_t i = 0; i < kept.size(); ++i) candidates_[i] = candidates_[static_cast<size_t>(kept[i])];
  candidates_.resize(kept.size());
}

/// Drops what is less likely than min_p times the most likely, whose weight is 1.
void Sampler::keep_min_p() {
  weigh(candidates_, weights_);
  keep_at_least(config_.min_p, candidates_, weights_);
}

int32_t Sampler::draw() {
  if (candidates_.empty()) return -1;
  const double sum = weigh(candidates_, weights_);
  double left = random_.uniform() * sum;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    left -= static_cast<double>(weights_[i]);
    if (left < 0) return candidates_[i].token;
  }
  return candidates_.back().token;  // rounding
}

}  // namespace nibble
