// The best tokens of each row of logits, found on the GPU, so that few numbers have to come back.
#pragma once

#include <memory>
#include <span>

#include "ops/backend.h"
#include "tensor/tensor.h"

namespace nibble::models {

/// What is asked of rows of logits.
struct CandidateRequest {
  int64_t count = 1;      // 1 to CandidateSearch::most()
  float temperature = 1;  // of the masses alone: values stay as they are
  float repetition_penalty = 1;
  /// For each row, the tokens that the penalty is for, each once. May be empty if it is 1.
  std::span<const std::span<const int32_t>> seen{};
};

/// Of one row of logits, after the repetition penalty.
struct CandidateRow {
  std::span<const int32_t> tokens;  // best first, of equals the lower id; -1 behind the last logit that is a number
  std::span<const float> values;
  float mass = 0;  // of the whole row: sum of exp((logit - the largest) / temperature), good to 1e-6 of itself
};

/// Of each row.
struct CandidateRows {
  int64_t count = 0;
  std::span<const int32_t> tokens;  // (rows, count)
  std::span<const float> values;    // (rows, count)
  std::span<const float> masses;    // (rows)

  CandidateRow row(size_t index) const {
    const auto n = static_cast<size_t>(count);
    return {tokens.subspan(index * n, n), values.subspan(index * n, n), masses[index]};
  }
};

/// Buffers for that, kept between steps. One thread at a time.
class CandidateSearch {
 public:
  /// `backend` outlives it and is a GPU's.
  explicit CandidateSearch(const ops::Backend& backend) : backend_(backend) {}

  /// The most candidates of a row over `vocab` that may be asked for; 0 if the kernels are not for it.
  static int64_t most(const ops::Backend& backend, int64_t vocab);

  /// Penalizes logits (rows, vocab) in device memory in place and waits for their best. The spans live until the next
  /// call. Errors: out_of_memory, device.
  CandidateRows find(float* logits, int64_t rows, int64_t vocab, const CandidateRequest& request);

 private:
  void penalize(float* logits, int64_t rows, int64_t vocab, const CandidateRequest& request);

  const ops::Backend& backend_;
  Tensor found_, seen_;                           // i32: tokens, values, masses; i32: offsets, tokens
  std::shared_ptr<void> host_found_, host_seen_;  // pinned
};

}  // namespace nibble::models
