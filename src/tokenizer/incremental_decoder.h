// Decoding while tokens arrive: text is handed out as soon as no later token can change it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace nibble {

/// The pieces of push() and the last one of finish() joined are exactly decode() of all ids. Not thread-safe.
class IncrementalDecoder {
 public:
  IncrementalDecoder(const Tokenizer& tokenizer, const DecodeOptions& options)
      : tokenizer_(tokenizer), options_(options) {}

  /// Text that became certain with `id`; empty while a character is incomplete.
  /// Errors: invalid_argument for an id outside the vocabulary (the decoder is as before).
  std::string push(int32_t id);
  /// What is held back (incomplete bytes as U+FFFD). The decoder is then as new.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  DecodeOptions options_;
  std::vector<int32_t> pending_;
  bool first_ = true;
};

}  // namespace nibble
