// Base64, the form in which tokenizer files hold bytes.
#pragma once

#include <string>
#include <string_view>

namespace nibble {

/// Errors: corrupt_file (`source`) for any other character.
std::string decode_base64(std::string_view text, std::string_view source);

}  // namespace nibble
