// One upload of the tokens that were seen, two kernels, one download.
#include "models/candidate_search.h"

#include <algorithm>
#include <bit>

#include "base/error.h"

namespace nibble::models {
namespace {

constexpr int64_t kWord = sizeof(int32_t);
static_assert(sizeof(float) == kWord);

/// Room for `words` on both sides; more than asked for, because texts grow.
void make_room(const ops::Backend& backend, int64_t words, Tensor& device, std::shared_ptr<void>& host) {
  if (device && device.count() >= words) return;
  const auto room = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(words, 1024))));
  backend.cuda()->synchronize();
  host = backend.cuda()->allocate_pinned(room * kWord);
  device = backend.empty(DType::i32, {room});  // last: it is what says how much room there is
}

}  // namespace

int64_t CandidateSearch::most(const ops::Backend& backend, int64_t vocab) {
  if (!backend.kernels().top_candidates || !backend.kernels().penalize) return 0;
  return vocab <= kernels::kMostCandidateColumns ? kernels::kMostCandidates : 0;
}

void CandidateSearch::penalize(float* logits, int64_t rows, int64_t vocab, const CandidateRequest& request) {
  require(static_cast<int64_t>(request.seen.size()) == rows, "candidates: found {} lists of tokens, expected {}",
          request.seen.size(), rows);
  int64_t words = rows + 1;
  for (const auto tokens : request.seen) words += static_cast<int64_t>(tokens.size());
  make_room(backend_, words, seen_, host_seen_);
  auto* offsets = static_cast<int32_t*>(host_seen_.get());
  int32_t* end = offsets + rows + 1;
  offsets[0] = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const auto tokens = request.seen[static_cast<size_t>(r)];
    end = std::copy(tokens.begin(), tokens.end(), end);
    offsets[r + 1] = offsets[r] + static_cast<int32_t>(tokens.size());
  }
  backend_.cuda()->copy(seen_.data(), offsets, words * kWord);
  const auto* seen = seen_.as<int32_t>();
  backend_.kernels().penalize(backend_.context(),
                              {logits, rows, vocab, seen + rows + 1, seen, request.repetition_penalty});
}

CandidateRows CandidateSearch::find(float* logits, int64_t rows, int64_t vocab, const CandidateRequest& request) {
  require(request.count >= 1 && request.count <= most(backend_, vocab), "candidates: found count {}, expected 1 to {}",
          request.count, most(backend_, vocab));
  if (request.repetition_penalty != 1.0f) penalize(logits, rows, vocab, request);
  const int64_t each = rows * request.count, words = 2 * each + rows;
  make_room(backend_, words, found_, host_found_);
  auto* tokens = found_.as<int32_t>();
  auto* values = reinterpret_cast<float*>(tokens + each);
  backend_.kernels().top_candidates(
      backend_.context(), {logits, rows, vocab, request.count, request.temperature, tokens, values, values + each});
  backend_.cuda()->check();
  backend_.cuda()->copy(host_found_.get(), found_.data(), words * kWord);
  backend_.cuda()->synchronize();
  const auto* host_tokens = static_cast<const int32_t*>(host_found_.get());
  const auto* host_values = reinterpret_cast<const float*>(host_tokens + each);
  const auto size = static_cast<size_t>(each);
  return {request.count, {host_tokens, size}, {host_values, size}, {host_values + each, static_cast<size_t>(rows)}};
}

}  // namespace nibble::models
