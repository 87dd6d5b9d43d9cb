// Printable Latin-1 stands for itself; the other 68 bytes follow from U+0100 on.
#include "tokenizer/byte_level.h"

#include <array>

#include "tokenizer/utf8.h"

namespace nibble {

namespace {

struct Tables {
  std::array<std::string, 256> character;
  std::array<int16_t, 512> byte;  // by code point, -1 for none

  Tables() {
    byte.fill(-1);
    char32_t next = 0x100;
    for (char32_t b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      const char32_t c = printable ? b : next++;
      append_utf8(character[b], c);
      byte[c] = static_cast<int16_t>(b);
    }
  }
};

const Tables& tables() {
  static const Tables instance;
  return instance;
}

}  // namespace

void append_byte_level(std::string& out, std::string_view text) {
  const auto& character = tables().character;
  for (const char c : text) out.append(character[static_cast<unsigned char>(c)]);
}

std::optional<std::string> bytes_of_byte_level(std::string_view token) {
  std::string bytes;
  const auto& byte = tables().byte;
  while (!token.empty()) {
    const auto [c, length] = front_code_point(token);
    if (c >= byte.size() || byte[c] < 0) return std::nullopt;
    bytes += static_cast<char>(byte[c]);
    token.remove_prefix(length);
  }
  return bytes;
}

}  // namespace nibble
