// For tests: the best candidates of rows of logits in main memory, as a GPU finds them.
#pragma once

#include <cmath>
#include <vector>

#include "generate/top_k.h"
#include "models/candidate_search.h"

namespace nibble {

class BestOfRows {
 public:
  /// Penalizes `logits` in place. What is returned lives until the next call.
  models::CandidateRows find(std::vector<float>& logits, int64_t vocab, const models::CandidateRequest& request) {
    tokens_.clear();
    values_.clear();
    masses_.clear();
    for (size_t r = 0; r * static_cast<size_t>(vocab) < logits.size(); ++r) {
      const auto row = std::span(logits).subspan(r * static_cast<size_t>(vocab), static_cast<size_t>(vocab));
      if (request.repetition_penalty != 1.0f)
        for (const int32_t token : request.seen[r]) {
          float& x = row[static_cast<size_t>(token)];
          x = x < 0 ? x * request.repetition_penalty : x / request.repetition_penalty;
        }
      add(row, request);
    }
    return {request.count, tokens_, values_, masses_};
  }

 private:
  void add(std::span<const float> row, const models::CandidateRequest& request) {
    auto best = top_k(row, request.count);
    best.resize(static_cast<size_t>(request.count), {-1, -INFINITY});
    for (const auto& [token, value] : best) {
      tokens_.push_back(value > -INFINITY ? static_cast<int32_t>(token) : -1);
      values_.push_back(value);
    }
    double mass = 0;
    for (const float x : row)
      if (x > -INFINITY)
        mass += std::exp(double{x / request.temperature} - double{best[0].second / request.temperature});
    masses_.push_back(static_cast<float>(mass));
  }

  std::vector<int32_t> tokens_;
  std::vector<float> values_, masses_;
};

}  // namespace nibble
