// A decode step on a GPU: recorded once for a set of sequences, then run again with what has changed in memory.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "models/candidate_search.h"
#include "models/decoder.h"

namespace nibble::models {

/// One thread at a time. Falls back to plain passes where a step cannot be recorded (experts are chosen by the host).
class StepGraph {
 public:
  /// Both outlive it; the decoder runs on a GPU.
  StepGraph(const Decoder& decoder, Workspace& workspace);

  /// One token for each sequence; the caller advances the caches. Spans live until the next call.
  /// The most likely token of each, chosen on the GPU; -1 if no logit is a number.
  std::span<const int32_t> run_greedy(std::span<const SequenceTokens> sequences, const int32_t* ids,
                                      bool batch_invariant);
  /// Logits (sequences, vocab).
  std::span<const float> run(std::span<const SequenceTokens> sequences, const int32_t* ids, bool batch_invariant);
  /// The best tokens of each.
  CandidateRows run_candidates(std::span<const SequenceTokens> sequences, const int32_t* ids, bool batch_invariant,
                               const CandidateRequest& request);
  /// The whole row of logits that run_candidates() searched, with its penalty. Leaves the candidates as they are.
  std::span<const float> searched_row(size_t index);

 private:
  void launch(std::span<const SequenceTokens> sequences, const int32_t* ids, bool batch_invariant);
  void enqueue(Pass& pass);
  void make_room(int64_t sequences);

  const Decoder& decoder_;
  Workspace& workspace_;
  device::CudaStream& cuda_;
  bool is_recordable_;
  int64_t room_ = 0;                               // sequences that the results have room for
  Tensor logits_, best_;                           // f32 (room, vocab), i32 (room)
  std::shared_ptr<void> host_logits_, host_best_;  // pinned
  std::vector<int64_t> key_;                       // what the graph was recorded for
  std::unique_ptr<device::CudaGraph> graph_;
  CandidateSearch candidates_;
};

}  // namespace nibble::models
