// Reading and walking the double array (darts-clone's layout).
#include "tokenizer/charsmap.h"

#include <algorithm>

#include "base/error.h"
#include "tokenizer/utf8.h"

namespace nibble {

namespace {

uint32_t little_endian(std::string_view bytes) {
  uint32_t value = 0;
  for (size_t i = 4; i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}

bool has_leaf(uint32_t unit) { return (unit >> 8 & 1) != 0; }
uint32_t value_of(uint32_t unit) { return unit & 0x7FFFFFFFu; }
uint32_t label_of(uint32_t unit) { return unit & 0x800000FFu; }
/// Whether the byte at `position` does not start a character of valid UTF-8.
bool is_inside_character(std::string_view text, size_t position) {
  return position < text.size() && (static_cast<unsigned char>(text[position]) & 0xC0) == 0x80;
}
uint32_t offset_of(uint32_t unit) { return (unit >> 10) << ((unit & 0x200u) >> 6); }

}  // namespace

Charsmap::Charsmap(std::string_view blob, std::string_view source) {
  if (blob.size() < 4)
    fail(ErrorCode::corrupt_file, "{}: precompiled normalizer of {} bytes, expected at least 4", source, blob.size());
  const size_t trie_bytes = little_endian(blob);
  blob.remove_prefix(4);
  if (trie_bytes > blob.size() || trie_bytes % 4 != 0) {
    fail(ErrorCode::corrupt_file, "{}: precompiled normalizer: a trie of {} bytes in {} bytes", source, trie_bytes,
         blob.size());
  }
  for (size_t at = 0; at < trie_bytes; at += 4) units_.push_back(little_endian(blob.substr(at)));
  replacements_ = blob.substr(trie_bytes);
  if (!is_valid_utf8(replacements_))
    fail(ErrorCode::corrupt_file, "{}: precompiled normalizer: a replacement is no UTF-8", source);
}

std::optional<Charsmap::Rule> Charsmap::find(std::string_view text, bool longest) const {
  std::optional<Rule> best;
  if (units_.empty()) return best;
  size_t at = offset_of(units_[0]);
  for (size_t i = 0; i < text.size() && text[i] != 0; ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    at ^= byte;
    if (at >= units_.size() || label_of(units_[at]) != byte) break;
    const uint32_t unit = units_[at];
    at ^= offset_of(unit);
    if (!has_leaf(unit)) continue;
    if (at >= units_.size()) break;
    if (is_inside_character(text, i + 1)) continue;  // a broken rule: what is left would be no UTF-8
    const size_t start = std::min<size_t>(value_of(units_[at]), replacements_.size());
    if (is_inside_character(replacements_, start)) continue;
    const size_t end = std::min(replacements_.find('\0', start), replacements_.size());
    best = Rule{i + 1, std::string_view(replacements_).substr(start, end - start)};
    if (!longest) break;
  }
  return best;
}

}  // namespace nibble
