// SentencePiece's precompiled normalization rules: a double-array trie over texts and the texts that replace them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// Immutable; thread-safe.
class Charsmap {
 public:
  /// `blob`: trie size (32 bits, little endian), trie, replacement texts ended by NUL. Errors: corrupt_file.
  Charsmap(std::string_view blob, std::string_view source);

  struct Rule {
    size_t length;  // bytes of the text that it replaces
    std::string_view replacement;
  };
  /// The shortest or the longest rule for a prefix of `text`, which is valid UTF-8; so are what is left of it and the
  /// replacement.
  std::optional<Rule> find_shortest(std::string_view text) const { return find(text, false); }
  std::optional<Rule> find_longest(std::string_view text) const { return find(text, true); }

 private:
  std::optional<Rule> find(std::string_view text, bool longest) const;
  std::vector<uint32_t> units_;
  std::string replacements_;
};

}  // namespace nibble
