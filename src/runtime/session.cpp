// Caches per sequence, prompts in chunks, one forward pass for a step of many sequences.
#include "runtime/session.h"

#include <algorithm>

#include "base/cancel.h"
#include "base/error.h"
#include "models/step_graph.h"

namespace nibble {
namespace {

/// Tokens of a prompt that run together: enough to use the processor well, few enough to keep buffers small.
int64_t chunk_of(const ops::Backend& backend) { return backend.cuda() ? 2048 : 512; }

}  // namespace

struct Session::State {
  const models::Decoder& decoder;
  bool batch_invariant;
  std::vector<nn::KvCache> caches;
  /// For models with a renewal_length: the tokens of each cache, and whether it was computed as of a longer sequence.
  struct History {
    std::vector<int32_t> tokens;
    bool is_long = false;
  };
  std::vector<History> histories;
  std::vector<std::optional<nn::KvCache>> sources;  // of an encoder-decoder; sequences of the same source share storage
  models::Workspace workspace;
  std::vector<float> logits;
  std::vector<models::SequenceTokens> batch;
  std::unique_ptr<models::StepGraph> graph;  // on a GPU

  nn::KvCache& cache(int64_t sequence) {
    require(sequence >= 0 && sequence < static_cast<int64_t>(caches.size()), "sequence: found {}, expected 0 to {}",
            sequence, static_cast<int64_t>(caches.size()) - 1);
    return caches[static_cast<size_t>(sequence)];
  }

  /// What the encoder made for a sequence; null for a decoder alone.
  nn::KvCache* source(int64_t sequence) {
    if (!decoder.spec().encoder) return nullptr;
    auto& found = sources[static_cast<size_t>(sequence)];
    require(found.has_value(), "sequence {} has no source: expected encode() before its first token", sequence);
    return &*found;
  }

  void check_tokens(std::span<const int32_t> tokens) const {
    for (const int32_t token : tokens)
      require(token >= 0 && token < decoder.vocab_size(), "token id: found {}, expected 0 to {}", token,
              decoder.vocab_size() - 1);
  }

  void make_room(nn::KvCache& cache, int64_t length) const {
    const int64_t limit = decoder.spec().max_position_embeddings;
    require(length <= limit, "sequence of {} tokens: the model's context is {}", length, limit);
    cache.reserve(length);
  }

  /// Before `tokens` join a sequence: computes its cache anew if the model's rope is another at the new length.
  void renew(int64_t sequence, std::span<const int32_t> tokens) {
    const int64_t limit = decoder.spec().renewal_length;
    if (limit == 0) return;
    nn::KvCache& past = cache(sequence);
    History& history = histories[static_cast<size_t>(sequence)];
    history.tokens.resize(static_cast<size_t>(past.length()));
    const int64_t length = past.length() + static_cast<int64_t>(tokens.size());
    if (past.length() > 0 && history.is_long != (length > limit)) {
      nn::KvCache fresh = decoder.make_cache();  // so that a cancelled run leaves the old one
      fresh.reserve(past.capacity());
      run(fresh, source(sequence), history.tokens, length, nullptr, false);
      past = std::move(fresh);
    }
    history.is_long = length > limit;
    history.tokens.insert(history.tokens.end(), tokens.begin(), tokens.end());
  }

  /// Checks a step of one token for each sequence and makes it the batch.
  void begin_step(std::span<const int64_t> sequences, std::span<const int32_t> tokens) {
    require(!sequences.empty() && sequences.size() == tokens.size(), "step: found {} sequences and {} tokens",
            sequences.size(), tokens.size());
    throw_if_cancelled();
    check_tokens(tokens);
    batch.clear();
    for (const int64_t sequence : sequences) {
      nn::KvCache& own = cache(sequence);
      for (const auto& other : batch) require(other.cache != &own, "step: sequence {} occurs twice", sequence);
      make_room(own, own.length() + 1);
      batch.push_back({&own, 1, own.length() + 1, source(sequence)});
    }
    for (size_t i = 0; i < sequences.size(); ++i) renew(sequences[i], tokens.subspan(i, 1));
  }
  void end_step() {
    for (const auto& sequence : batch) sequence.cache->set_length(sequence.length);
  }

  /// Runs a prompt in chunks; `out` holds vocab floats, or that for every token.
  void append(int64_t sequence, std::span<const int32_t> tokens, float* out, bool all_logits) {
    nn::KvCache& cache = this->cache(sequence);
    nn::KvCache* source = this->source(sequence);
    require(!tokens.empty(), "append: found no tokens, expected at least one");
    check_tokens(tokens);
    const int64_t length = cache.length() + static_cast<int64_t>(tokens.size());
    make_room(cache, length);
    renew(sequence, tokens);
    run(cache, source, tokens, length, out, all_logits);
  }

  /// `length` is the sequence's when all of its tokens are in; `out` may be null.
  void run(nn::KvCache& cache, nn::KvCache* source, std::span<const int32_t> tokens, int64_t length, float* out,
           bool all_logits) {
    while (!tokens.empty()) {
      throw_if_cancelled();
      const auto count = std::min(static_cast<int64_t>(tokens.size()), chunk_of(decoder.backend()));
      const bool is_last = count == static_cast<int64_t>(tokens.size());
      const models::SequenceTokens chunk{&cache, count, length, source};
      decoder.forward({&chunk, 1}, tokens.data(), workspace, all_logits || is_last ? out : nullptr, all_logits,
                      batch_invariant);
      cache.set_length(cache.length() + count);
      tokens = tokens.subspan(static_cast<size_t>(count));
      if (out && all_logits) out += count * decoder.vocab_size();
    }
  }
};

Session::Session(const models::Decoder& decoder, int64_t sequences, int64_t max_tokens, bool batch_invariant)
    : state_(std::make_unique<State>(
          State{decoder, batch_invariant, {}, {}, {}, models::Workspace(decoder.backend()), {}, {}, {}})) {
  require(sequences > 0, "sequences: found {}, expected at least 1", sequences);
  if (decoder.backend().cuda()) state_->graph = std::make_unique<models::StepGraph>(decoder, state_->workspace);
  for (int64_t i = 0; i < sequences; ++i) {
    state_->caches.push_back(decoder.make_cache());
    state_->caches.back().reserve(std::min(max_tokens, decoder.spec().max_position_embeddings));
  }
  state_->histories.resize(state_->caches.size());
  state_->sources.resize(state_->caches.size());
}

Session::~Session() = default;

void Session::encode(std::span<const int64_t> sequences, std::span<const int32_t> ids) {
  require(state_->decoder.spec().encoder.has_value(), "encode: {} has no encoder", state_->decoder.spec().architecture);
  require(!ids.empty(), "encode: found no tokens, expected at least one");
  throw_if_cancelled();
  state_->check_tokens(ids);
  for (const int64_t sequence : sequences)
    require(state_->cache(sequence).length() == 0, "encode: sequence {} has begun already", sequence);
  const nn::KvCache source = state_->decoder.encode(ids, state_->workspace, state_->batch_invariant);
  for (const int64_t sequence : sequences) state_->sources[static_cast<size_t>(sequence)] = source;
}

std::span<const float> Session::append(int64_t sequence, std::span<const int32_t> tokens) {
  state_->logits.resize(static_cast<size_t>(vocab_size()));
  state_->append(sequence, tokens, state_->logits.data(), false);
  return state_->logits;
}

std::vector<float> Session::append_all(int64_t sequence, std::span<const int32_t> tokens) {
  std::vector<float> logits(tokens.size() * static_cast<size_t>(vocab_size()));
  state_->append(sequence, tokens, logits.data(), true);
  return logits;
}

std::span<const float> Session::step(std::span<const int64_t> sequences, std::span<const int32_t> tokens) {
  state_->begin_step(sequences, tokens);
  if (state_->graph) {
    const auto logits = state_->graph->run(state_->batch, tokens.data(), state_->batch_invariant);
    state_->end_step();
    return logits;
  }
  state_->logits.resize(sequences.size() * static_cast<size_t>(vocab_size()));
  state_->decoder.forward(state_->batch, tokens.data(), state_->workspace, state_->logits.data(), false,
                          state_->batch_invariant);
  state_->end_step();
  return state_->logits;
}

bool Session::can_choose() const { return state_->graph != nullptr; }

std::span<const int32_t> Session::step_greedy(std::span<const int64_t> sequences, std::span<const int32_t> tokens) {
  if (!can_choose()) fail(ErrorCode::unsupported, "step_greedy: the model is on the CPU, expected a GPU");
  state_->begin_step(sequences, tokens);
  const auto best = state_->graph->run_greedy(state_->batch, tokens.data(), state_->batch_invariant);
  state_->end_step();
  return best;
}

int64_t Session::most_candidates() const {
  return state_->graph ? models::CandidateSearch::most(state_->decoder.backend(), vocab_size()) : 0;
}

models::CandidateRows Session::step_candidates(std::span<const int64_t> sequences, std::span<const int32_t> tokens,
                                               const models::CandidateRequest& request) {
  if (most_candidates() == 0) fail(ErrorCode::unsupported, "step_candidates: the model is on the CPU, expected a GPU");
  state_->begin_step(sequences, tokens);
  const auto found = state_->graph->run_candidates(state_->batch, tokens.data(), state_->batch_invariant, request);
  state_->end_step();
  return found;
}

std::span<const float> Session::searched_row(size_t index) { return state_->graph->searched_row(index); }

int64_t Session::length(int64_t sequence) const { return state_->cache(sequence).length(); }

void Session::truncate(int64_t sequence, int64_t length) {
  nn::KvCache& cache = state_->cache(sequence);
  require(length >= 0 && length <= cache.length(), "truncate: found length {}, expected 0 to {}", length,
          cache.length());
  cache.set_length(length);
}

void Session::reorder(std::span<const int64_t> source) {
  require(source.size() == state_->caches.size(), "reorder: found {} sources, expected {}", source.size(),
          state_->caches.size());
  const auto old_histories = state_->histories;
  const auto old_sources = state_->sources;
  std::vector<nn::KvCache> old;
  for (const int64_t from : source) old.push_back(state_->cache(from));  // shares storage
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == static_cast<int64_t>(i)) continue;
    nn::KvCache copy = state_->decoder.make_cache();
    copy.assign(old[i]);
    state_->caches[i] = std::move(copy);
    state_->histories[i] = old_histories[static_cast<size_t>(source[i])];
    state_->sources[i] = old_sources[static_cast<size_t>(source[i])];
  }
}

int64_t Session::vocab_size() const { return state_->decoder.vocab_size(); }
int64_t Session::context() const { return state_->decoder.spec().max_position_embeddings; }

int64_t Session::cache_bytes() const {
  int64_t bytes = 0;
  for (const nn::KvCache& cache : state_->caches) bytes += cache.size_bytes();
  return bytes;
}

}  // namespace nibble
