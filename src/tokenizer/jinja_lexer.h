// Template text as tokens, with Jinja's white space control (trim_blocks and lstrip_blocks on, as transformers sets).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::jinja {

enum class TokenKind : uint8_t {
  data,
  variable_begin,
  variable_end,
  block_begin,
  block_end,
  name,
  text,
  integer,
  real,
  symbol,
  end
};

struct Token {
  TokenKind kind;
  std::string text;  // data, name, symbol, or the value of a text literal
  int64_t integer = 0;
  double real = 0;
  int line = 1;

  bool is(TokenKind wanted, std::string_view value) const { return kind == wanted && text == value; }
};

/// The last token is `end`. Errors: corrupt_file with the line.
std::vector<Token> tokenize(std::string_view source);

}  // namespace nibble::jinja
