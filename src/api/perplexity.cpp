// Sliding-window perplexity, as the transformers documentation defines it.
#include <algorithm>
#include <cmath>

#include "api/implementation.h"
#include "base/cancel.h"
#include "base/error.h"
#include "runtime/session.h"

namespace nibble {
namespace {

/// -log softmax(logits)[target], summed in double.
double negative_log_likelihood(const float* logits, int64_t vocab, int32_t target) {
  const float highest = *std::max_element(logits, logits + vocab);
  double sum = 0;
  for (int64_t i = 0; i < vocab; ++i) sum += std::exp(double(logits[i]) - highest);
  return std::log(sum) + highest - logits[target];
}

}  // namespace

PerplexityResult AutoModelForCausalLM::perplexity(std::span<const int32_t> tokens, int64_t context, int64_t stride,
                                                  const Progress& progress) {
  const auto count = static_cast<int64_t>(tokens.size());
  require(context >= 2 && context <= max_position_embeddings(), "context: found {}, expected 2 to {} (the model's)",
          context, max_position_embeddings());
  require(stride >= 1 && stride <= context, "stride: found {}, expected 1 to the context {}", stride, context);
  require(count >= 2, "perplexity: found {} tokens, expected at least 2", count);
  model_->check_ids(tokens);
  const int64_t vocab = vocab_size();
  auto& pool = model_->decoder->backend().pool();
  Session session(*model_->decoder, 1, context);
  PerplexityResult result;
  double total = 0;
  int64_t scored = 0;  // tokens before this one have been predicted once
  for (int64_t begin = 0; begin < count; begin += stride) {
    throw_if_cancelled();
    const int64_t end = std::min(begin + context, count);
    session.truncate(0, 0);
    const std::vector<float> logits = session.append_all(0, tokens.subspan(size_t(begin), size_t(end - begin)));
    const int64_t first = std::max(scored, begin + 1);  // a window's first token has nothing to be predicted from
    std::vector<double> losses(static_cast<size_t>(std::max<int64_t>(end - first, 0)));
    pool.parallel_for(end - first, [&](int64_t i, int) {
      const int64_t position = first + i;
      losses[size_t(i)] =
          negative_log_likelihood(logits.data() + (position - 1 - begin) * vocab, vocab, tokens[size_t(position)]);
    });
    for (const double loss : losses) total += loss;  // in order: the same bits on any number of threads
    result.tokens += static_cast<int64_t>(losses.size());
    scored = end;
    if (progress) progress("perplexity", uint64_t(end), uint64_t(count));
    if (end == count) break;
  }
  result.mean_nll = total / double(result.tokens);
  result.perplexity = std::exp(result.mean_nll);
  return result;
}

}  // namespace nibble
