// UTF-8: stepping through code points, repairing bytes that are none, and the character classes that tokenizers test.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

/// Code point at the front of `text` and its length in bytes. `text` must be valid UTF-8 and not empty.
struct CodePoint {
  char32_t value;
  size_t length;
};
CodePoint front_code_point(std::string_view text);

/// Length in bytes of the character that starts with `lead` in valid UTF-8.
inline size_t utf8_length(unsigned char lead) { return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4; }

/// Start of the last character of `text` (valid UTF-8, not empty).
size_t last_character_start(std::string_view text);

void append_utf8(std::string& out, char32_t code_point);

/// Length of the longest valid prefix.
size_t valid_utf8_prefix(std::string_view text);
inline bool is_valid_utf8(std::string_view text) { return valid_utf8_prefix(text) == text.size(); }

/// Appends `text` with every maximal invalid part as U+FFFD (as Python's errors="replace" and Rust's lossy conversion).
void append_repaired_utf8(std::string& out, std::string_view text);

/// Bytes at the end of `text` that may become a character when more bytes follow; 0 to 3.
size_t incomplete_utf8_tail(std::string_view text);

size_t count_code_points(std::string_view text);

/// Unicode property White_Space.
bool is_whitespace(char32_t c);
/// General categories N*, P* (and all ASCII punctuation), Mn, M*.
bool is_numeric(char32_t c);
bool is_punctuation(char32_t c);
bool is_nonspacing_mark(char32_t c);
bool is_mark(char32_t c);
/// General categories Cc, Cf, Co.
bool is_control(char32_t c);

}  // namespace nibble
