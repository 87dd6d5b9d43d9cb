// Regular expressions of tokenizer files: Oniguruma's Ruby syntax, run by PCRE2 with its just-in-time compiler.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "tokenizer/newer_characters.h"

namespace nibble {

/// A compiled expression. Immutable; thread-safe. Work per match is limited: hostile patterns end in
/// Error{corrupt_file}.
class Regex {
 public:
  /// `pattern` as the `tokenizers` package reads it. Errors: corrupt_file (with `source`), unsupported.
  Regex(std::string_view pattern, std::string_view source);
  /// Matches `text` and nothing else.
  static Regex literal(std::string_view text);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) = delete;

  struct Match {
    size_t begin;
    size_t end;
  };
  /// First match at or after `from` in valid UTF-8 `text`.
  std::optional<Match> find(std::string_view text, size_t from) const;

  /// Calls visit(begin, end) for each match from left to right; an empty match right after a match is passed over.
  template <typename Visit>
  void find_all(std::string_view text, Visit&& visit) const {
    std::string storage;
    text = with_known_characters(text, storage);
    size_t from = 0;
    std::optional<size_t> last_end;
    while (from <= text.size()) {
      const auto match = find(text, from);
      if (!match) return;
      if (match->begin == match->end && last_end == match->end) {
        from += from < text.size() ? character_length(text[from]) : 1;
        continue;
      }
      from = match->end;
      last_end = match->end;
      visit(match->begin, match->end);
    }
  }

 private:
  Regex() = default;
  static size_t character_length(char lead);
  void compile(const std::string& pattern);
  struct Code;
  std::unique_ptr<Code> code_;
  std::string source_;
};

/// `pattern` in PCRE2's syntax with Oniguruma's meaning of \s \w \d \h, properties, nested classes and `{n,m}+`.
std::string translate_oniguruma(std::string_view pattern, std::string_view source);

}  // namespace nibble
