// A forward-only JSON reader for the two huge members of a tokenizer.json (vocabulary, merges); base/json reads the
// rest.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

/// Reads valid UTF-8 `text` value by value. Every broken construct is Error{corrupt_file} with `source` and the offset.
class JsonScanner {
 public:
  JsonScanner(std::string_view text, std::string_view source) : text_(text), source_(source) {}

  /// The next character that is no white space, not consumed; 0 at the end.
  char peek();
  bool accept(char c);
  void expect(char c);
  /// A string without its escapes: a view into the text, or, if it had any, one that is valid until the next call.
  std::string_view read_string();
  /// Whether the last string had escapes.
  bool was_escaped() const { return !unescaped_.empty(); }
  int64_t read_integer();
  /// The digits as a double, then scaled by a power of ten: like the `tokenizers` package, and unlike strtod, whose
  /// nearest double can be another one. Sums of Unigram scores that nearly tie depend on it.
  double read_number();
  /// Consumes one value and returns its text.
  std::string_view skip_value();

  /// Calls `member(key)` for every member of an object; `member` consumes the value.
  template <typename Member>
  void read_object(Member&& member) {
    expect('{');
    if (accept('}')) return;
    do {
      const std::string key(read_string());
      expect(':');
      member(std::string_view(key));
    } while (accept(','));
    expect('}');
  }

  /// Calls `item()` for every item of an array; `item` consumes it.
  template <typename Item>
  void read_array(Item&& item) {
    expect('[');
    if (accept(']')) return;
    do item();
    while (accept(','));
    expect(']');
  }

 private:
  [[noreturn]] void broken(std::string_view expected) const;
  void append_escape();
  uint32_t read_hex4();
  std::string_view number_text();

  std::string_view text_;
  std::string_view source_;
  size_t at_ = 0;
  std::string unescaped_;
};

}  // namespace nibble
