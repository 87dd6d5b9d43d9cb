// The `loop` variable of a for block: items are taken one at a time, so that `loop.last` looks ahead only when asked.
#pragma once

#include "tokenizer/jinja_value.h"

namespace nibble::jinja {

struct LoopState {
  std::function<std::optional<Value>()> pull;  // the next item; empty after the loop has ended
  std::vector<Value> ahead;                    // taken but not visited, in order
  size_t ahead_next = 0;
  std::optional<Value> previous, current, last_changed;
  int64_t index0 = -1;

  /// Moves to the next item; false at the end.
  bool advance() {
    std::optional<Value> item = peek();
    if (!item) return false;
    ++ahead_next;
    previous = std::move(current);
    current = std::move(item);
    ++index0;
    return true;
  }
  std::optional<Value> peek() {
    if (ahead_next == ahead.size()) {
      ahead.clear();
      ahead_next = 0;
      std::optional<Value> item = pull ? pull() : std::nullopt;
      if (!item) return std::nullopt;
      ahead.push_back(*std::move(item));
    }
    return ahead[ahead_next];
  }
  int64_t length() {
    while (pull) {
      std::optional<Value> item = pull();
      if (!item) break;
      ahead.push_back(*std::move(item));
    }
    return index0 + 1 + static_cast<int64_t>(ahead.size() - ahead_next);
  }
  /// Lets go of all values: a loop may be kept in a namespace.
  void end() {
    pull = nullptr;
    ahead.clear();
    ahead_next = 0;
    previous = current = last_changed = std::nullopt;
  }
};

}  // namespace nibble::jinja
