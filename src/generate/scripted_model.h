// For tests: a model whose logits are first[last token] + second[token before], as in make_generation_goldens.py.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "base/json.h"
#include "generate/token_model.h"

namespace nibble {

class ScriptedModel final : public TokenModel {
 public:
  using Table = std::vector<std::vector<float>>;
  ScriptedModel(Table first, Table second, int64_t sequences)
      : first_(std::move(first)), second_(std::move(second)), sequences_(static_cast<size_t>(sequences)) {}

  std::span<const float> append(int64_t sequence, std::span<const int32_t> tokens) override {
    auto& history = sequences_[static_cast<size_t>(sequence)];
    history.insert(history.end(), tokens.begin(), tokens.end());
    logits_.clear();
    add_logits(history);
    return logits_;
  }

  std::span<const float> step(std::span<const int64_t> sequences, std::span<const int32_t> tokens) override {
    ++steps;
    logits_.clear();
    for (size_t i = 0; i < sequences.size(); ++i) {
      auto& history = sequences_[static_cast<size_t>(sequences[i])];
      history.push_back(tokens[i]);
      add_logits(history);
    }
    return logits_;
  }

  void reorder(std::span<const int64_t> source) override {
    const auto old = sequences_;
    for (size_t i = 0; i < sequences_.size(); ++i) sequences_[i] = old[static_cast<size_t>(source[i])];
  }

  int64_t vocab_size() const override { return static_cast<int64_t>(first_.size()); }

  int64_t steps = 0;

 private:
  void add_logits(const std::vector<int32_t>& history) {
    const auto last = static_cast<size_t>(history.back());
    const size_t before = history.size() > 1 ? static_cast<size_t>(history[history.size() - 2]) : 0;
    for (size_t i = 0; i < first_.size(); ++i) logits_.push_back(first_[last][i] + second_[before][i]);
  }

  Table first_, second_;
  std::vector<std::vector<int32_t>> sequences_;
  std::vector<float> logits_;
};

}  // namespace nibble
