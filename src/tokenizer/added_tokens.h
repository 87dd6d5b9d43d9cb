// Added tokens: texts that become one id wherever they stand, found before the model runs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/byte_trie.h"
#include "tokenizer/normalizer.h"
#include "tokenizer/pieces.h"
#include "tokenizer/vocabulary.h"

namespace nibble {

struct AddedToken {
  std::string content;
  int32_t id = -1;
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space after it
  bool normalized = true;    // looked for in the normalized text
  bool special = false;
};

/// Immutable after construction; thread-safe.
class AddedTokens {
 public:
  AddedTokens() = default;
  AddedTokens(std::vector<AddedToken> tokens, const Normalizer* normalizer, std::string_view source);

  /// Cuts `text` at the tokens, normalizes what is between and cuts that at the normalized tokens.
  Pieces split(std::string_view text, const Normalizer* normalizer) const;

  /// A token with `normalized` set has its normalized text as content: that is what decoding gives.
  const AddedToken* find(int32_t id) const;
  std::optional<int32_t> find(std::string_view content) const { return by_content_.find(content); }
  /// One more than the largest id.
  int32_t id_limit() const { return by_content_.id_limit(); }

 private:
  struct Found {
    size_t begin;
    size_t end;
    int32_t id;  // -1: the text between tokens
  };
  void find_in(std::string_view text, const ByteTrie& trie, std::vector<Found>& found) const;

  std::vector<AddedToken> tokens_;
  std::vector<int32_t> by_id_;  // id -> index in tokens_, -1 where there is none
  Vocabulary by_content_;
  ByteTrie exact_;       // values are indices in tokens_
  ByteTrie normalized_;  // the tokens with normalized set, as their normalized texts
};

}  // namespace nibble
