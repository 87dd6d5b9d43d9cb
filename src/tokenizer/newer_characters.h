// Bridges between the Unicode versions of our libraries and those that tokenizers were made with.
#pragma once

#include <string>
#include <string_view>

namespace nibble {

/// `text` with characters that PCRE2 does not know replaced by known ones of the same category and length, so that
/// offsets stay. Copies into `storage` only if there are any.
std::string_view with_known_characters(std::string_view text, std::string& storage);

/// Whether `tokenizers` treats `c` as unassigned when it normalizes.
bool is_inert_in_normalization(char32_t c);

}  // namespace nibble
