// What differs between steps lies in memory (tokens, positions, angles); what does not is the graph's key.
#include "models/step_graph.h"

#include <algorithm>
#include <bit>

#include "base/environment.h"
#include "models/layer.h"

namespace nibble::models {
namespace {

/// Attention is launched for the next power of two of tokens, so that a graph serves many steps.
constexpr int64_t kLeastTokens = 256;

int64_t bucket_of(std::span<const SequenceTokens> sequences) {
  int64_t longest = kLeastTokens;
  for (const SequenceTokens& sequence : sequences) longest = std::max(longest, sequence.cache->length() + 1);
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(longest)));
}

}  // namespace

StepGraph::StepGraph(const Decoder& decoder, Workspace& workspace)
    : decoder_(decoder), workspace_(workspace), cuda_(*decoder.backend().cuda()), candidates_(decoder.backend()) {
  const auto& layers = decoder.spec().layers;
  // Experts are sorted on the host; what cross-attention reads is not part of the key; a profile waits for each entry.
  is_recordable_ = !environment().profile && std::none_of(layers.begin(), layers.end(), [](const LayerSpec& layer) {
    return layer.mlp.experts.count > 0 || layer.has_cross();
  });
}

void StepGraph::make_room(int64_t sequences) {
  if (sequences <= room_) return;
  graph_.reset();
  key_.clear();
  cuda_.synchronize();
  const int64_t vocab = decoder_.vocab_size();
  logits_ = decoder_.backend().empty(DType::f32, {sequences, vocab});
  best_ = decoder_.backend().empty(DType::i32, {sequences});
  host_logits_ = cuda_.allocate_pinned(logits_.size_bytes());
  host_best_ = cuda_.allocate_pinned(best_.size_bytes());
  room_ = sequences;
}

void StepGraph::enqueue(Pass& pass) {
  decoder_.run(pass, logits_.as<float>(), false);
  const ops::Backend& backend = decoder_.backend();
  backend.kernels().argmax(backend.context(),
                           {logits_.as<float>(), pass.tokens, decoder_.vocab_size(), best_.as<int32_t>()});
}

void StepGraph::launch(std::span<const SequenceTokens> sequences, const int32_t* ids, bool batch_invariant) {
  make_room(static_cast<int64_t>(sequences.size()));
  const int64_t bucket = is_recordable_ ? bucket_of(sequences) : 0;
  Pass pass = decoder_.prepare(sequences, ids, workspace_, batch_invariant, bucket);
  std::vector<int64_t> key{bucket, batch_invariant, workspace_.moves(), decoder_.backend().scratch_moves()};
  for (const SequenceTokens& sequence : sequences) {
    key.push_back(sequence.cache->storage_id());
    if (sequence.source) key.insert(key.end(), {sequence.source->storage_id(), sequence.source->length()});
  }
  const bool is_known = is_recordable_ && key == key_;
  if (is_known && !graph_)
    graph_ = cuda_.capture([&] {
      workspace_.send_inputs(true);
      enqueue(pass);
    });
  if (is_known) return graph_->launch();
  // The first step of its kind runs by itself and leaves all memory in its place for the recording.
  graph_.reset();
  workspace_.send_inputs(false);
  enqueue(pass);
  cuda_.check();
  key[2] = workspace_.moves();
  key[3] = decoder_.backend().scratch_moves();
  key_ = std::move(key);
}

std::span<const int32_t> StepGraph::run_greedy(std::span<const SequenceTokens> sequences, const int32_t* ids,
                                               bool batch_invariant) {
  launch(sequences, ids, batch_invariant);
  const auto count = sequences.size();
  cuda_.copy(host_best_.get(), best_.data(), static_cast<int64_t>(count * sizeof(int32_t)));
  cuda_.synchronize();
  return {static_cast<const int32_t*>(host_best_.get()), count};
}

std::span<const float> StepGraph::run(std::span<const SequenceTokens> sequences, const int32_t* ids,
                                      bool batch_invariant) {
  launch(sequences, ids, batch_invariant);
  const auto count = sequences.size() * static_cast<size_t>(decoder_.vocab_size());
  cuda_.copy(host_logits_.get(), logits_.data(), static_cast<int64_t>(count * sizeof(float)));
  cuda_.synchronize();
  return {static_cast<const float*>(host_logits_.get()), count};
}

CandidateRows StepGraph::run_candidates(std::span<const SequenceTokens> sequences, const int32_t* ids,
                                        bool batch_invariant, const CandidateRequest& request) {
  launch(sequences, ids, batch_invariant);
  return candidates_.find(logits_.as<float>(), static_cast<int64_t>(sequences.size()), decoder_.vocab_size(), request);
}

std::span<const float> StepGraph::searched_row(size_t index) {
  const auto vocab = static_cast<size_t>(decoder_.vocab_size());
  auto* row = static_cast<float*>(host_logits_.get()) + index * vocab;
  cuda_.download(row, logits_.as<float>() + index * vocab, static_cast<int64_t>(vocab * sizeof(float)));
  return {row, vocab};
}

}  // namespace nibble::models
