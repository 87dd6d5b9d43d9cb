// Greedy and sampled generation of several rows.
#include "generate/generator.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/cancel.h"
#include "base/error.h"
#include "generate/beam.h"
#include "generate/sampler.h"
#include "generate/text_stream.h"

namespace nibble {

int64_t sequences_needed(size_t prompts, const GenerationConfig& config) {
  return static_cast<int64_t>(prompts) * std::max<int64_t>(1, config.num_beams);
}

void GenerationConfig::validate() const {
  require(max_new_tokens >= 0, "max_new_tokens: found {}, expected 0 or more", max_new_tokens);
  constexpr float kLeastTemperature = 1e-20f;  // by which logits can be divided
  require(temperature >= kLeastTemperature && std::isfinite(temperature),
          "temperature: found {}, expected {} or more; for the most likely token set do_sample to false", temperature,
          kLeastTemperature);
  require(top_k >= 0, "top_k: found {}, expected 0 or more", top_k);
  require(top_p > 0 && top_p <= 1, "top_p: found {}, expected above 0 and at most 1", top_p);
  require(min_p >= 0 && min_p < 1, "min_p: found {}, expected at least 0 and below 1", min_p);
  require(repetition_penalty > 0 && std::isfinite(repetition_penalty),
          "repetition_penalty: found {}, expected a positive number", repetition_penalty);
  require(num_beams >= 1 && num_beams <= 1024, "num_beams: found {}, expected 1 to 1024", num_beams);
  require(std::isfinite(length_penalty), "length_penalty: found {}, expected a number", length_penalty);
  for (const std::string& end : stop) require(!end.empty(), "stop: found an empty text");
  if (num_beams > 1 && do_sample) fail(ErrorCode::unsupported, "num_beams: beams cannot be sampled");
}

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void check_prompts(const TokenModel& model, const Tokenizer* tokenizer,
                   const std::vector<std::vector<int32_t>>& prompts, const GenerationConfig& config) {
  config.validate();
  require(tokenizer != nullptr || config.stop.empty(), "stop: stop strings need a tokenizer");
  for (size_t row = 0; row < prompts.size(); ++row) {
    require(!prompts[row].empty(), "prompt {}: it is empty", row);
    for (const int32_t id : prompts[row]) {
      require(id >= 0 && id < model.vocab_size(), "prompt {}: id {} is outside of the vocabulary of {}", row, id,
              model.vocab_size());
    }
  }
}

struct Row {
  Sampler sampler;
  TextStream text;
  std::vector<int32_t> tokens;  // prompt and new
  int64_t most_new_tokens;
  int64_t new_tokens = 0;
  StopReason reason = StopReason::length;
  bool is_done = false;
};

class Generator {
 public:
  Generator(TokenModel& model, const Tokenizer* tokenizer, const std::vector<std::vector<int32_t>>& prompts,
            const GenerationConfig& config, const TokenCallback& on_token)
      : model_(model), config_(config), on_token_(on_token) {
    for (const auto& prompt : prompts) {
      rows_.push_back({Sampler(config, model.vocab_size(), static_cast<int64_t>(rows_.size())),
                       TextStream(tokenizer, config.stop), prompt, most_new_tokens(model, config, prompt.size())});
      rows_.back().sampler.observe(prompt);
    }
  }

  GenerationOutput run() {
    GenerationOutput output;
    if (config_.max_new_tokens > 0) {
      const auto start = Clock::now();
      for (size_t row = 0; row < rows_.size(); ++row) {
        throw_if_cancelled();
        take(row, model_.append(static_cast<int64_t>(row), rows_[row].tokens));
      }
      output.times.prefill_seconds = seconds_since(start);
      const auto decode_start = Clock::now();
      while (step()) {
      }
      output.times.decode_seconds = seconds_since(decode_start);
    }
    for (Row& row : rows_) {
      output.times.new_tokens += row.new_tokens;
      output.times.prompt_tokens += static_cast<int64_t>(row.tokens.size()) - row.new_tokens;
      output.texts.push_back(row.text.text());
      output.stop_reasons.push_back(row.reason);
      output.sequences.push_back(std::move(row.tokens));
    }
    return output;
  }

 private:
  /// One token for every row that goes on; false if none does.
  bool step() {
    std::vector<int64_t> active;
    std::vector<int32_t> tokens;
    for (size_t row = 0; row < rows_.size(); ++row) {
      if (rows_[row].is_done) continue;
      active.push_back(static_cast<int64_t>(row));
      tokens.push_back(rows_[row].tokens.back());
    }
    if (active.empty()) return false;
    throw_if_cancelled();
    if (rows_[0].sampler.is_plain_greedy() && model_.can_choose()) {
      const std::span<const int32_t> best = model_.step_greedy(active, tokens);
      for (size_t i = 0; i < active.size(); ++i) {
        if (best[i] < 0) fail(ErrorCode::internal, "no logit of row {} is a number", active[i]);
        put(static_cast<size_t>(active[i]), best[i]);
      }
      return true;
    }
    if (const int64_t wanted = rows_[0].sampler.candidates_wanted(model_.most_candidates()); wanted > 0) {
      step_candidates(active, tokens, wanted);
      return true;
    }
    const std::span<const float> logits = model_.step(active, tokens);
    const auto vocab = static_cast<size_t>(model_.vocab_size());
    for (size_t i = 0; i < active.size(); ++i) take(static_cast<size_t>(active[i]), logits.subspan(i * vocab, vocab));
    return true;
  }

  /// The model finds the best tokens of each row; where they do not decide, the whole row is looked at.
  void step_candidates(const std::vector<int64_t>& active, const std::vector<int32_t>& tokens, int64_t count) {
    std::vector<std::span<const int32_t>> seen;
    for (const int64_t row : active) seen.push_back(rows_[static_cast<size_t>(row)].sampler.seen());
    const models::CandidateRows found =
        model_.step_candidates(active, tokens, {count, config_.temperature, config_.repetition_penalty, seen});
    for (size_t i = 0; i < active.size(); ++i) {
      const auto row = static_cast<size_t>(active[i]);
      Sampler& sampler = rows_[row].sampler;
      const auto token = sampler.next_of(found.row(i));
      put(row, token ? *token : sampler.next(model_.searched_row(i), true));
    }
  }

  /// Chooses the next token of a row.
  void take(size_t index, std::span<const float> logits) { put(index, rows_[index].sampler.next(logits)); }

  void put(size_t index, int32_t token) {
    Row& row = rows_[index];
    row.tokens.push_back(token);
    ++row.new_tokens;
    std::string text = row.text.push(token);
    const bool is_eos =
        std::find(config_.eos_token_id.begin(), config_.eos_token_id.end(), token) != config_.eos_token_id.end();
    if (row.text.is_stopped()) {
      end(row, StopReason::stop_string);
    } else if (is_eos || row.new_tokens >= row.most_new_tokens) {
      text += row.text.finish();
      end(row, row.text.is_stopped() ? StopReason::stop_string : is_eos ? StopReason::eos : StopReason::length);
    }
    if (on_token_ && !on_token_(static_cast<int64_t>(index), token, text) && !row.is_done) {
      row.text.finish();
      end(row, StopReason::callback);
    }
  }

  static void end(Row& row, StopReason reason) {
    row.reason = reason;
    row.is_done = true;
  }

  TokenModel& model_;
  const GenerationConfig& config_;
  const TokenCallback& on_token_;
  std::vector<Row> rows_;
};

}  // namespace

GenerationOutput generate(TokenModel& model, const Tokenizer* tokenizer,
                          const std::vector<std::vector<int32_t>>& prompts, const GenerationConfig& config,
                          const TokenCallback& on_token) {
  check_prompts(model, tokenizer, prompts, config);
  if (config.num_beams > 1) return beam_search(model, tokenizer, prompts, config, on_token);
  return Generator(model, tokenizer, prompts, config, on_token).run();
}

GenerationOutput generate(Session& session, const Tokenizer* tokenizer,
                          const std::vector<std::vector<int32_t>>& prompts, const GenerationConfig& config,
                          const TokenCallback& on_token) {
  SessionModel model(session);
  return generate(model, tokenizer, prompts, config, on_token);
}

}  // namespace nibble
