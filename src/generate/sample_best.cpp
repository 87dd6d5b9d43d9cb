// Choosing from the best candidates of a row: the same tokens as from the whole row, or no answer.
#include <algorithm>
#include <cmath>
#include <limits>

#include "generate/sampler.h"
#include "generate/top_k.h"

namespace nibble {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();
/// How far a mass may be off, and sums of weights from those of the whole row, both as a share.
constexpr double kMargin = 4e-6;

/// The weight of a score beside the largest, as weighing the whole row has it.
float weight_of(float score, float maximum) {
  float weight = 0;
  exponentials({&score, 1}, maximum, {&weight, 1});
  return weight;
}

}  // namespace

int64_t Sampler::candidates_wanted(int64_t most) const {
  const bool has_top_k = config_.top_k > 0 && config_.top_k < vocab_size_;
  if (most == 0 || is_plain_greedy()) return 0;
  if (!config_.do_sample) return 1;
  // Some more than top_k tell where the scores that equal the k-th end.
  constexpr int64_t kSpare = 14;
  if (has_top_k) return config_.top_k + kSpare <= most ? std::min(most, (config_.top_k + kSpare + 31) / 32 * 32) : 0;
  return config_.top_p < 1.0f || config_.min_p > 0.0f ? most : 0;
}

std::optional<int32_t> Sampler::next_of(const models::CandidateRow& row) {
  if (!config_.do_sample) return checked(row.tokens[0]);
  if (row.tokens[0] < 0) return checked(-1);
  if (!filter_best(row)) return std::nullopt;
  return checked(draw());
}

bool Sampler::filter_best(const models::CandidateRow& row) {
  bool is_whole = false;
  float bound = kLowest;
  take_best(row, is_whole, bound);
  if (candidates_.empty() || !std::isfinite(candidates_[0].score)) return false;
  const bool has_top_k = config_.top_k > 0 && config_.top_k < vocab_size_;
  const bool has_all = is_whole && !has_top_k;
  if (has_top_k && !keep_best_top_k(bound)) return false;
  if (!has_top_k && !is_whole && !keep_best_top_p(row.mass, bound)) return false;
  std::sort(candidates_.begin(), candidates_.end(),
            [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
  if (config_.top_p < 1.0f && (has_top_k || has_all)) keep_top_p();
  if (config_.min_p > 0.0f) keep_min_p();
  return true;
}

/// The candidates by falling score, those with a score of `bound` left out: every token that is not among them has
/// at most that. Nothing is missing if `is_whole`.
void Sampler::take_best(const models::CandidateRow& row, bool& is_whole, float& bound) {
  const auto count = static_cast<size_t>(std::find(row.tokens.begin(), row.tokens.end(), -1) - row.tokens.begin());
  is_whole = count < row.tokens.size() || static_cast<int64_t>(count) == vocab_size_;
  const auto score = [&](size_t i) {
    return config_.temperature != 1.0f ? row.values[i] / config_.temperature : row.values[i];
  };
  bound = is_whole ? kLowest : score(count - 1);
  candidates_.clear();
  for (size_t i = 0; i < count && score(i) > bound; ++i) candidates_.push_back({row.tokens[i], score(i)});
}

/// Scores equal to the k-th stay, too: they are all there, because it is above `bound`.
bool Sampler::keep_best_top_k(float bound) {
  const auto k = static_cast<size_t>(config_.top_k);
  if (candidates_.size() < k) return bound == kLowest;
  while (candidates_.back().score < candidates_[k - 1].score) candidates_.pop_back();
  return true;
}

/// Top-p of a row whose mass is known, where it is above what the candidates leave in doubt. What min_p will drop
/// for certain may be missing.
bool Sampler::keep_best_top_p(float mass, float bound) {
  const float maximum = candidates_[0].score;
  const bool is_rest_dropped = weight_of(bound, maximum) < config_.min_p * 0.9999f;
  if (config_.top_p >= 1.0f) return is_rest_dropped;
  // Of equal scores the lower ids are dropped first.
  std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
    return a.score != b.score ? a.score > b.score : a.token > b.token;
  });
  const double kept_mass = static_cast<double>(config_.top_p) * static_cast<double>(mass);
  const double margin = kMargin * static_cast<double>(mass);
  double above = 0;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    above += static_cast<double>(weight_of(candidates_[i].score, maximum));
    if (above < kept_mass - margin) continue;
    candidates_.resize(i + 1);
    return above > kept_mass + margin;
  }
  return is_rest_dropped;
}

}  // namespace nibble
