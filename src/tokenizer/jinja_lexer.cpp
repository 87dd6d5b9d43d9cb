// Template text as tokens.
#include "tokenizer/jinja_lexer.h"

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "tokenizer/python_text.h"

namespace nibble::jinja {
namespace {

/// All line ends as "\n"; one at the end of the text is dropped.
std::string normalize_lines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
      out += '\n';
    } else {
      out += source[i];
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || static_cast<unsigned char>(c) >= 0x80;
}
bool is_name_part(char c) { return is_name_start(c) || is_digit(c); }

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize_lines(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) lex_root();
    add(TokenKind::end, "");
    return std::move(tokens_);
  }

 private:
  template <typename... Args>
  [[noreturn]] void fail_line(fmt::format_string<Args...> format, Args&&... args) const {
    fail(ErrorCode::corrupt_file, "chat template, line {}: {}", line_,
         fmt::format(format, std::forward<Args>(args)...));
  }

  std::string_view rest() const { return std::string_view(source_).substr(at_); }
  bool starts(std::string_view text) const { return rest().starts_with(text); }

  void add(TokenKind kind, std::string text) { tokens_.push_back({kind, std::move(text), 0, 0, line_}); }

  /// Moves on, counting lines; remembers whether a new line starts here.
  void advance(size_t count) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(at_),
                                         source_.begin() + static_cast<ptrdiff_t>(at_ + count), '\n'));
    at_ += count;
    if (count > 0) is_line_start_ = source_[at_ - 1] == '\n';
  }

  void skip_space() { advance(rest().size() - python_text::strip(rest(), std::nullopt, true, false).size()); }

  /// Text before a tag, cut as the tag's sign asks.
  void add_data(std::string_view data, char sign, bool is_variable) {
    if (sign == '-') {
      data = python_text::strip(data, std::nullopt, false, true);
    } else if (sign != '+' && !is_variable) {
      const size_t begin = data.rfind('\n') + 1;
      if ((begin > 0 || is_line_start_) && python_text::strip(data.substr(begin), std::nullopt, true, false).empty()) {
        data = data.substr(0, begin);
      }
    }
    if (!data.empty()) add(TokenKind::data, std::string(data));
  }

  char sign_at(size_t position) const {
    const char c = position < source_.size() ? source_[position] : '\0';
    return c == '-' || c == '+' ? c : '\0';
  }

  void lex_root() {
    size_t tag = at_;
    while ((tag = source_.find('{', tag)) != std::string::npos) {
      const char next = tag + 1 < source_.size() ? source_[tag + 1] : '\0';
      if (next == '{' || next == '%' || next == '#') break;
      ++tag;
    }
    if (tag == std::string::npos) {
      add(TokenKind::data, source_.substr(at_));
      advance(source_.size() - at_);
      return;
    }
    const char kind = source_[tag + 1], sign = sign_at(tag + 2);
    const size_t size = tag - at_;
    add_data(rest().substr(0, size), sign, kind == '{');
    advance(size + 2 + (sign != '\0' ? 1 : 0));
    if (kind == '#') return lex_comment();
    if (kind == '%' && lex_raw()) return;
    add(kind == '{' ? TokenKind::variable_begin : TokenKind::block_begin, "");
    lex_tag(kind == '{');
  }

  /// Consumes an end of a tag ("%}" with its signs) if it is here.
  bool lex_end(std::string_view mark, bool trims_line) {
    if (starts("-") && std::string_view(source_).substr(at_ + 1).starts_with(mark)) {
      advance(1 + mark.size());
      skip_space();
      return true;
    }
    if (trims_line && starts("+") && std::string_view(source_).substr(at_ + 1).starts_with(mark)) {
      advance(1 + mark.size());
      return true;
    }
    if (!starts(mark)) return false;
    advance(mark.size());
    if (trims_line && starts("\n")) advance(1);
    return true;
  }

  void lex_comment() {
    const int begin = line_;
    const size_t end = source_.find("#}", at_);
    if (end == std::string::npos) {
      line_ = begin;
      fail_line("a comment without end");
    }
    const char sign = end > at_ ? sign_at(end - 1) : '\0';
    advance(end - at_ - (sign != '\0' ? 1 : 0));
    lex_end("#}", true);
  }

  /// After "{%": a raw block with its end, if it is one.
  bool lex_raw() {
    const size_t start = at_;
    const int line = line_;
    const bool was_line_start = is_line_start_;
    skip_space();
    const auto rewind = [&] {
      at_ = start;
      line_ = line;
      is_line_start_ = was_line_start;
      return false;
    };
    if (!starts("raw") || (at_ + 3 < source_.size() && is_name_part(source_[at_ + 3]))) return rewind();
    advance(3);
    skip_space();
    if (!lex_end("%}", false)) return rewind();
    for (size_t tag = at_; (tag = source_.find("{%", tag)) != std::string::npos; tag += 2) {
      const char sign = sign_at(tag + 2);
      std::string_view inner = python_text::strip(std::string_view(source_).substr(tag + 2 + (sign != '\0' ? 1 : 0)),
                                                  std::nullopt, true, false);
      if (!inner.starts_with("endraw")) continue;
      inner = python_text::strip(inner.substr(6), std::nullopt, true, false);
      if (!inner.starts_with("%}") && !inner.starts_with("-%}") && !inner.starts_with("+%}")) continue;
      add_data(rest().substr(0, tag - at_), sign, false);
      advance(static_cast<size_t>(inner.data() - source_.data()) - at_);
      lex_end("%}", true);
      return true;
    }
    fail_line("a raw block without end");
  }

  void lex_tag(bool is_variable) {
    const int begin = line_;
    std::string open;  // brackets waiting for their end
    while (true) {
      skip_space();
      if (at_ >= source_.size()) {
        line_ = begin;
        fail_line("a tag without end");
      }
      if (open.empty() && lex_end(is_variable ? "}}" : "%}", !is_variable)) {
        add(is_variable ? TokenKind::variable_end : TokenKind::block_end, "");
        return;
      }
      const char c = source_[at_];
      if (is_digit(c)) {
        lex_number();
      } else if (is_name_start(c)) {
        size_t end = at_;
        while (end < source_.size() && is_name_part(source_[end])) ++end;
        add(TokenKind::name, source_.substr(at_, end - at_));
        advance(end - at_);
      } else if (c == '\'' || c == '"') {
        lex_text(c);
      } else {
        lex_symbol(open);
      }
    }
  }

  void lex_symbol(std::string& open) {
    for (const std::string_view symbol : {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
                                          "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ","}) {
      if (!starts(symbol)) continue;
      const char c = symbol[0];
      if (c == '(' || c == '[' || c == '{') open += c == '(' ? ')' : c == '[' ? ']' : '}';
      if (c == ')' || c == ']' || c == '}') {
        if (open.empty() || open.back() != c) fail_line("unexpected '{}'", c);
        open.pop_back();
      }
      add(TokenKind::symbol, std::string(symbol));
      advance(symbol.size());
      return;
    }
    fail_line("unexpected character '{}'", python_text::slice(rest(), 0, 1));
  }

  size_t digits_end(size_t from) const {
    while (from < source_.size() && (is_digit(source_[from]) || (source_[from] == '_' && from + 1 < source_.size() &&
                                                                 is_digit(source_[from + 1]))))
      ++from;
    return from;
  }

  void lex_number() {
    int base = 10;
    if (starts("0x") || starts("0X")) base = 16;
    if (starts("0o") || starts("0O")) base = 8;
    if (starts("0b") || starts("0B")) base = 2;
    size_t end = digits_end(at_);
    bool is_real = false;
    if (base != 10) {
      end = at_ + 2;
      while (end < source_.size() && (std::isxdigit(static_cast<unsigned char>(source_[end])) || source_[end] == '_'))
        ++end;
    } else if (at_ == 0 || source_[at_ - 1] != '.') {
      if (end + 1 < source_.size() && source_[end] == '.' && is_digit(source_[end + 1])) {
        end = digits_end(end + 1);
        is_real = true;
      }
      if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
        const size_t sign = end + 1 < source_.size() && (source_[end + 1] == '+' || source_[end + 1] == '-') ? 1 : 0;
        if (end + 1 + sign < source_.size() && is_digit(source_[end + 1 + sign])) {
          end = digits_end(end + 1 + sign);
          is_real = true;
        }
      }
    }
    std::string digits = source_.substr(at_, end - at_);
    std::erase(digits, '_');
    Token token{is_real ? TokenKind::real : TokenKind::integer, digits, 0, 0, line_};
    const char* first = digits.data() + (base != 10 ? 2 : 0);
    const char* last = digits.data() + digits.size();
    const auto result =
        is_real ? std::from_chars(first, last, token.real) : std::from_chars(first, last, token.integer, base);
    if (result.ec != std::errc() || result.ptr != last) fail_line("the number {} cannot be read", digits);
    tokens_.push_back(std::move(token));
    advance(end - at_);
  }

  /// A quoted literal with Python's escapes.
  void lex_text(char quote) {
    std::string value;
    size_t i = at_ + 1;
    for (; i < source_.size() && source_[i] != quote; ++i) {
      if (source_[i] != '\\') {
        value += source_[i];
      } else if (++i < source_.size()) {
        i = lex_escape(i, value);
      }
    }
    if (i >= source_.size()) fail_line("a text literal without end");
    add(TokenKind::text, std::move(value));
    advance(i + 1 - at_);
  }

  /// The escape whose letter is at `i`; returns its last position.
  size_t lex_escape(size_t i, std::string& value) {
    static constexpr std::string_view kLetters = "\\'\"abfnrtv", kValues = "\\'\"\a\b\f\n\r\t\v";
    const char c = source_[i];
    if (c == '\n') return i;
    if (const size_t known = kLetters.find(c); known != kLetters.npos) {
      value += kValues[known];
      return i;
    }
    uint32_t code = 0;
    if (c >= '0' && c <= '7') {
      size_t end = i;
      while (end < source_.size() && end < i + 3 && source_[end] >= '0' && source_[end] <= '7') {
        code = code * 8 + static_cast<uint32_t>(source_[end++] - '0');
      }
      python_text::append_utf8(code, value);
      return end - 1;
    }
    const size_t width = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (width == 0) {
      value += '\\';
      value += c;
      return i;
    }
    const char* begin = source_.data() + i + 1;
    const char* end = begin + std::min(width, source_.size() - i - 1);
    const auto [stop, error] = std::from_chars(begin, end, code, 16);
    if (error != std::errc() || stop != begin + width || code > 0x10FFFF) fail_line("a broken \\{} escape", c);
    // A lone half of a surrogate pair has no UTF-8.
    python_text::append_utf8(code >= 0xD800 && code <= 0xDFFF ? U'\uFFFD' : static_cast<char32_t>(code), value);
    return i + width;
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool is_line_start_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace nibble::jinja
