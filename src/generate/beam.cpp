// Beam search over a running model: all rows advance together.
#include "generate/beam.h"

#include <algorithm>
#include <chrono>

#include "base/cancel.h"
#include "generate/beam_row.h"
#include "generate/text_stream.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

class BeamSearch {
 public:
  BeamSearch(TokenModel& model, const Tokenizer* tokenizer, const std::vector<std::vector<int32_t>>& prompts,
             const GenerationConfig& config)
      : model_(model), prompts_(prompts), beams_(static_cast<size_t>(config.num_beams)) {
    for (const auto& prompt : prompts)
      rows_.emplace_back(config, tokenizer, prompt, model.vocab_size(), most_new_tokens(model, config, prompt.size()));
  }

  /// The prompts run once, in the first sequence of each row.
  void prefill() {
    for (size_t row = 0; row < rows_.size(); ++row) {
      throw_if_cancelled();
      const auto logits = model_.append(static_cast<int64_t>(row * beams_), prompts_[row]);
      rows_[row].advance(std::vector<std::span<const float>>(beams_, logits));
    }
    sources_at_start_ = true;
  }

  /// One token for every beam of the rows that go on; false if none does.
  bool step() {
    std::vector<int64_t> active;
    std::vector<int32_t> tokens;
    std::vector<int64_t> source(rows_.size() * beams_);
    for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<int64_t>(i);
    for (size_t row = 0; row < rows_.size(); ++row) {
      if (rows_[row].is_done()) continue;
      for (size_t b = 0; b < beams_; ++b) {
        const Beam& beam = rows_[row].running()[b];
        const size_t from = sources_at_start_ ? 0 : beam.source;
        source[row * beams_ + b] = static_cast<int64_t>(row * beams_ + from);
        active.push_back(static_cast<int64_t>(row * beams_ + b));
        tokens.push_back(beam.tokens.back());
      }
    }
    if (active.empty()) return false;
    throw_if_cancelled();
    sources_at_start_ = false;
    if (!std::is_sorted(source.begin(), source.end(), std::less_equal<>())) model_.reorder(source);
    const auto logits = model_.step(active, tokens);
    const auto vocab = static_cast<size_t>(model_.vocab_size());
    for (size_t i = 0; i < active.size(); i += beams_) {
      std::vector<std::span<const float>> row_logits;
      for (size_t b = 0; b < beams_; ++b) row_logits.push_back(logits.subspan((i + b) * vocab, vocab));
      rows_[static_cast<size_t>(active[i]) / beams_].advance(row_logits);
    }
    return true;
  }

  const Beam& best(size_t row) const { return rows_[row].best(); }

 private:
  TokenModel& model_;
  const std::vector<std::vector<int32_t>>& prompts_;
  size_t beams_;
  std::vector<BeamRow> rows_;
  bool sources_at_start_ = false;
};

/// Replays a found sequence through the text and the callback.
void report(size_t row, const std::vector<int32_t>& tokens, const Tokenizer* tokenizer, const GenerationConfig& config,
            const TokenCallback& on_token, GenerationOutput& output) {
  TextStream stream(tokenizer, config.stop);
  StopReason reason = StopReason::length;
  for (size_t i = 0; i < tokens.size(); ++i) {
    std::string text = stream.push(tokens[i]);
    output.sequences[row].push_back(tokens[i]);
    ++output.times.new_tokens;
    const bool is_last = i + 1 == tokens.size();
    if (is_last) text += stream.finish();
    const auto& eos = config.eos_token_id;
    if (is_last && std::find(eos.begin(), eos.end(), tokens[i]) != eos.end()) reason = StopReason::eos;
    if (stream.is_stopped()) reason = StopReason::stop_string;
    if (on_token && !on_token(static_cast<int64_t>(row), tokens[i], text) && !is_last) {
      stream.finish();
      reason = StopReason::callback;
      break;
    }
  }
  output.texts.push_back(stream.text());
  output.stop_reasons.push_back(reason);
}

}  // namespace

GenerationOutput beam_search(TokenModel& model, const Tokenizer* tokenizer,
                             const std::vector<std::vector<int32_t>>& prompts, const GenerationConfig& config,
                             const TokenCallback& on_token) {
  GenerationOutput output;
  output.sequences = prompts;
  for (const auto& prompt : prompts) output.times.prompt_tokens += static_cast<int64_t>(prompt.size());
  if (config.max_new_tokens == 0) {
    output.texts.resize(prompts.size());
    output.stop_reasons.resize(prompts.size(), StopReason::length);
    return output;
  }
  BeamSearch search(model, tokenizer, prompts, config);
  const auto start = Clock::now();
  search.prefill();
  const auto decode_start = Clock::now();
  output.times.prefill_seconds = std::chrono::duration<double>(decode_start - start).count();
  while (search.step()) {
  }
  output.times.decode_seconds = std::chrono::duration<double>(Clock::now() - decode_start).count();
  for (size_t row = 0; row < prompts.size(); ++row) {
    report(row, search.best(row).tokens, tokenizer, config, on_token, output);
  }
  return output;
}

}  // namespace nibble
