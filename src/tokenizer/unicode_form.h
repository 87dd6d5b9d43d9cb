// Unicode normalization forms, lower case and grapheme clusters, from utf8proc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

enum class UnicodeForm : uint8_t { nfc, nfd, nfkc, nfkd };

/// Rewrites valid UTF-8 in the form. Errors: out_of_memory.
void to_unicode_form(std::string& text, UnicodeForm form);

/// Appends the lower case of `c` without regard to its neighbours.
void append_lowercase(std::string& out, char32_t c);

/// Bytes of the extended grapheme cluster at the front of `text` (valid UTF-8, not empty).
size_t grapheme_length(std::string_view text);

}  // namespace nibble
