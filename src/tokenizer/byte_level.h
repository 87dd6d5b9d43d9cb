// GPT-2's way of writing any byte as a printable character.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nibble {

/// Appends the character of each byte of `text`.
void append_byte_level(std::string& out, std::string_view text);

/// The bytes that `token` stands for, or nullopt if one of its characters stands for none.
std::optional<std::string> bytes_of_byte_level(std::string_view token);

}  // namespace nibble
