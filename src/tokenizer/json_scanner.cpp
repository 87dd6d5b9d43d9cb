// The forward-only JSON reader.
#include "tokenizer/json_scanner.h"

#include <array>
#include <charconv>

#include "base/error.h"
#include "tokenizer/utf8.h"

namespace nibble {

namespace {

// The bytes that stand for themselves inside a string.
constexpr auto kPlain = [] {
  std::array<bool, 256> plain{};
  for (size_t c = 0x20; c < 256; ++c) plain[c] = c != '"' && c != '\\';
  return plain;
}();

}  // namespace

void JsonScanner::broken(std::string_view expected) const {
  fail(ErrorCode::corrupt_file, "{}: broken JSON at byte {}: expected {}", source_, at_, expected);
}

char JsonScanner::peek() {
  while (at_ < text_.size()) {
    const char c = text_[at_];
    if (c != ' ' && c != '\n' && c != '\r' && c != '\t') return c;
    ++at_;
  }
  return 0;
}

bool JsonScanner::accept(char c) {
  if (peek() != c || at_ == text_.size()) return false;
  ++at_;
  return true;
}

void JsonScanner::expect(char c) {
  if (!accept(c)) broken(std::string_view(&c, 1));
}

std::string_view JsonScanner::read_string() {
  expect('"');
  unescaped_.clear();
  size_t start = at_;
  for (; at_ < text_.size(); ++at_) {
    const char c = text_[at_];
    if (kPlain[static_cast<unsigned char>(c)]) continue;
    if (c == '"') {
      const std::string_view last = text_.substr(start, at_++ - start);
      if (unescaped_.empty()) return last;
      unescaped_.append(last);
      return unescaped_;
    }
    if (c == '\\') {
      unescaped_.append(text_.substr(start, at_ - start));
      append_escape();
      start = at_ + 1;
    } else {
      broken("no control character inside a string");
    }
  }
  broken("the end of a string");
}

uint32_t JsonScanner::read_hex4() {
  uint32_t value = 0;
  const std::string_view digits = text_.substr(std::min(at_ + 1, text_.size()), 4);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
  if (error != std::errc() || digits.size() != 4 || end != digits.data() + 4) broken("four hexadecimal digits");
  at_ += 4;
  return value;
}

void JsonScanner::append_escape() {  // at_ is on the backslash; ends on the escape's last character
  if (++at_ >= text_.size()) broken("an escape");
  constexpr std::string_view kLetters = "\"\\/bfnrt";
  constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
  const char c = text_[at_];
  if (const size_t which = kLetters.find(c); which != std::string_view::npos) {
    unescaped_ += kMeanings[which];
    return;
  }
  if (c != 'u') broken("a known escape");
  char32_t code_point = read_hex4();
  if (code_point >= 0xD800 && code_point < 0xDC00) {
    if (text_.substr(at_ + 1, 2) != "\\u") broken("the second half of a surrogate pair");
    at_ += 2;
    const uint32_t low = read_hex4();
    if (low < 0xDC00 || low > 0xDFFF) broken("the second half of a surrogate pair");
    code_point = 0x10000 + ((code_point - 0xD800) << 10) + (low - 0xDC00);
  } else if (code_point >= 0xDC00 && code_point < 0xE000) {
    broken("the first half of a surrogate pair");
  }
  append_utf8(unescaped_, code_point);
}

std::string_view JsonScanner::number_text() {
  peek();
  const size_t start = at_;
  while (at_ < text_.size() && std::string_view("+-.0123456789eE").find(text_[at_]) != std::string_view::npos) ++at_;
  return text_.substr(start, at_ - start);
}

int64_t JsonScanner::read_integer() {
  const std::string_view text = number_text();
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) broken("an integer");
  return value;
}

double JsonScanner::read_number() {
  const std::string_view text = number_text();
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) broken("a number");
  uint64_t digits = 0;
  int exponent = 0;
  bool is_fraction = false;
  for (const char c : text) {
    if (c == 'e' || c == 'E') return value;
    if (c == '.') is_fraction = true;
    if (c < '0' || c > '9') continue;
    const auto digit = static_cast<uint64_t>(c - '0');
    if (digits > (UINT64_MAX - digit) / 10) {  // digits beyond 64 bits are dropped
      if (!is_fraction) return value;
      break;
    }
    digits = digits * 10 + digit;
    exponent += is_fraction;
  }
  if (exponent > 22) return value;  // the powers of ten up to here are exact
  double power = 1;
  for (int i = 0; i < exponent; ++i) power *= 10;
  const double scaled = static_cast<double>(digits) / power;
  return text.starts_with('-') ? -scaled : scaled;
}

std::string_view JsonScanner::skip_value() {
  peek();
  const size_t start = at_;
  size_t depth = 0;
  do {
    const char c = peek();
    if (c == '"') {
      read_string();
    } else if (c == '{' || c == '[') {
      ++depth;
      ++at_;
    } else if (c == '}' || c == ']') {
      if (depth == 0) broken("a value");
      --depth;
      ++at_;
    } else if (at_ >= text_.size()) {
      broken("a value");
    } else if (depth > 0 && (c == ',' || c == ':')) {
      ++at_;
    } else {  // a number or a literal: base/json judges it later
      const size_t word = at_;
      while (at_ < text_.size() && std::string_view(",:{}[]\" \n\r\t").find(text_[at_]) == std::string_view::npos)
        ++at_;
      if (at_ == word) broken("a value");
    }
  } while (depth > 0);
  return text_.substr(start, at_ - start);
}

}  // namespace nibble
