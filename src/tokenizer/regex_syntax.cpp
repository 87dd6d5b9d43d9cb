// From Oniguruma's Ruby syntax to PCRE2's: the differences that patterns of real tokenizers touch.
#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "base/error.h"
#include "tokenizer/regex.h"

namespace nibble {

namespace {

constexpr std::string_view kSpace =
    R"(\t-\r\x20\x85\xa0\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::string_view kWord = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";
constexpr std::string_view kHexDigit = "0-9A-Fa-f";

// Properties by Oniguruma's name; a general category's short name is the same in both.
constexpr std::array<std::pair<std::string_view, std::string_view>, 46> kProperties = {{
    {"letter", "L"},
    {"uppercaseletter", "Lu"},
    {"lowercaseletter", "Ll"},
    {"titlecaseletter", "Lt"},
    {"modifierletter", "Lm"},
    {"otherletter", "Lo"},
    {"mark", "M"},
    {"combiningmark", "M"},
    {"nonspacingmark", "Mn"},
    {"spacingmark", "Mc"},
    {"enclosingmark", "Me"},
    {"number", "N"},
    {"decimalnumber", "Nd"},
    {"letternumber", "Nl"},
    {"othernumber", "No"},
    {"punctuation", "P"},
    {"connectorpunctuation", "Pc"},
    {"dashpunctuation", "Pd"},
    {"openpunctuation", "Ps"},
    {"closepunctuation", "Pe"},
    {"initialpunctuation", "Pi"},
    {"finalpunctuation", "Pf"},
    {"otherpunctuation", "Po"},
    {"symbol", "S"},
    {"mathsymbol", "Sm"},
    {"currencysymbol", "Sc"},
    {"modifiersymbol", "Sk"},
    {"othersymbol", "So"},
    {"separator", "Z"},
    {"spaceseparator", "Zs"},
    {"lineseparator", "Zl"},
    {"paragraphseparator", "Zp"},
    {"other", "C"},
    {"control", "Cc"},
    {"cntrl", "Cc"},
    {"format", "Cf"},
    {"unassigned", "Cn"},
    {"privateuse", "Co"},
    {"digit", "Nd"},
    {"any", "Any"},
    {"alpha", "Alphabetic"},
    {"alphabetic", "Alphabetic"},
    {"upper", "Uppercase"},
    {"lower", "Lowercase"},
    {"space", "White_Space"},
    {"whitespace", "White_Space"},
}};
constexpr std::string_view kCategories = "CLMNPSZ";

std::string normalized_name(std::string_view name) {
  std::string out;
  for (const char c : name) {
    if (c == '_' || c == ' ' || c == '-') continue;
    out += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  return out;
}

class Translator {
 public:
  Translator(std::string_view pattern, std::string_view source) : in_(pattern), source_(source) {}

  std::string run() {
    while (at_ < in_.size()) translate_one();
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    fail(ErrorCode::unsupported, "{}: regular expression '{}' at {}: {} is not supported", source_, in_, at_, what);
  }
  char next(size_t ahead = 0) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }

  void translate_one() {
    const char c = next();
    if (c == '(') return open_group();
    if (c == ')') {
      if (!groups_.empty()) {
        atom_ = groups_.back();
        groups_.pop_back();
      }
      out_ += in_[at_++];
      return;
    }
    if (c == '{' && interval()) return;
    if (c == '*' || c == '+' || c == '?' || c == '|') {
      out_ += in_[at_++];
      return;
    }
    atom_ = out_.size();
    if (c == '[') {
      out_ += translate_class(0);
    } else if (c == '\\') {
      out_ += translate_escape(false);
    } else {
      do out_ += in_[at_++];
      while (at_ < in_.size() && (static_cast<unsigned char>(in_[at_]) & 0xC0) == 0x80);
    }
  }

  void open_group() {
    groups_.push_back(out_.size());
    out_ += in_[at_++];
    if (next() == '*') refuse("a verb");
    if (next() != '?') return;
    out_ += in_[at_++];
    // Option letters: Ruby's m lets the dot match a newline, which is s elsewhere.
    while (std::string_view("imsx-").find(next()) != std::string_view::npos && next() != '\0') {
      out_ += next() == 'm' ? 's' : next();
      ++at_;
    }
    if (std::string_view(":=!>|(#").find(next()) != std::string_view::npos && next() != '\0') out_ += in_[at_++];
    if (next() == ')') groups_.back() = out_.size();
  }

  // Ruby reads `x{n,m}+` as a repeated repetition, PCRE2 as a possessive one.
  bool interval() {
    const size_t close = in_.find('}', at_);
    if (close == std::string_view::npos) return false;
    std::string body(in_.substr(at_ + 1, close - at_ - 1));
    if (body.empty() || body == "," || body.find_first_not_of("0123456789,") != std::string::npos) return false;
    if (body[0] == ',') body.insert(0, "0");
    out_ += "{" + body + "}";
    at_ = close + 1;
    if (next() == '+') {
      out_.insert(atom_, "(?:");
      out_ += ')';
    }
    return true;
  }

  std::string property(bool negated, bool in_class) {
    const size_t close = in_.find('}', at_);
    if (close == std::string_view::npos) refuse("a property without its end");
    std::string_view name = in_.substr(at_ + 1, close - at_ - 1);
    if (!name.empty() && name[0] == '^') {
      negated = !negated;
      name.remove_prefix(1);
    }
    at_ = close + 1;
    const std::string key = normalized_name(name);
    std::string translated;
    const auto found =
        std::find_if(kProperties.begin(), kProperties.end(), [&](auto& entry) { return entry.first == key; });
    if (key == "word" || key == "alnum") {
      if (negated && in_class) refuse("a negated word property inside a class");
      const std::string items = key == "word" ? std::string(kWord) : R"(\p{Alphabetic}\p{Nd})";
      return in_class ? items : (negated ? "[^" : "[") + items + "]";
    }
    if (found != kProperties.end()) {
      translated = found->second;
    } else if (key.size() <= 2 && !key.empty() &&
               kCategories.find(static_cast<char>(key[0] - 32)) != std::string_view::npos) {
      translated = name;
    } else {
      translated = "sc:" + std::string(name);  // a script, without Script_Extensions
    }
    return (negated ? "\\P{" : "\\p{") + translated + "}";
  }

  std::string code_point_escape(size_t digits) {
    const std::string_view hex = in_.substr(std::min(at_, in_.size()), digits);
    if (hex.size() != digits || hex.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos)
      refuse("this escape");
    at_ += digits;
    return "\\x{" + std::string(hex) + "}";
  }

  std::string translate_escape(bool in_class) {
    const char c = next(1);
    at_ += 2;
    const auto set = [&](std::string_view items, bool negated) -> std::string {
      if (in_class) return std::string(items);
      return (negated ? "[^" : "[") + std::string(items) + "]";
    };
    switch (c) {
      case '\0':
        refuse("a backslash at the end");
      case 's':
        return set(kSpace, false);
      case 'S':
        return in_class ? "\\P{White_Space}" : set(kSpace, true);
      case 'd':
        return "\\p{Nd}";
      case 'D':
        return "\\P{Nd}";
      case 'w':
        return set(kWord, false);
      case 'h':
        return set(kHexDigit, false);
      case 'W':
      case 'H':
        if (in_class) refuse("a negated set inside a class");
        return set(c == 'W' ? kWord : kHexDigit, true);
      case 'v':
        return "\\x0b";
      case 'u':
        return code_point_escape(4);
      case 'p':
      case 'P':
        if (next() != '{') refuse("a property without braces");
        return property(c == 'P', in_class);
      default:
        return std::string("\\") + c;
    }
  }

  // One bracketed class, with Ruby's nesting (union) and && (intersection).
  std::string translate_class(int depth) {
    if (depth > 20) refuse("deeper nesting of classes");
    ++at_;
    const bool negated = next() == '^';
    if (negated) ++at_;
    std::vector<std::string> parts;
    std::string items;
    if (next() == ']') items += "\\" + std::string(1, in_[at_++]);
    while (next() != ']') {
      if (at_ >= in_.size()) refuse("a class without its end");
      if (next() == '[' && next(1) == ':') {
        const size_t close = in_.find(":]", at_);
        if (close == std::string_view::npos) refuse("a POSIX class without its end");
        items += in_.substr(at_, close + 2 - at_);
        at_ = close + 2;
      } else if (next() == '[') {
        const std::string inner = translate_class(depth + 1);
        const bool plain = inner[0] == '[' && inner[1] != '^';
        const bool alone = items.empty() && (next() == ']' || (next() == '&' && next(1) == '&'));
        if (!plain && !alone) refuse("a negated class inside a class");
        if (plain)
          items += inner.substr(1, inner.size() - 2);
        else
          parts.push_back(inner);
      } else if (next() == '&' && next(1) == '&') {
        at_ += 2;
        if (!items.empty()) parts.push_back("[" + std::exchange(items, "") + "]");
      } else if (next() == '\\') {
        items += translate_escape(true);
      } else {
        items += in_[at_++];
      }
    }
    ++at_;
    if (parts.empty()) return (negated ? "[^" : "[") + items + "]";
    if (!items.empty()) parts.push_back("[" + items + "]");
    return intersection(parts, negated);
  }

  static std::string intersection(const std::vector<std::string>& parts, bool negated) {
    std::string all;
    for (size_t i = 0; i + 1 < parts.size(); ++i) all += "(?=" + parts[i] + ")";
    all += parts.back();
    return negated ? "(?:(?!" + all + ")(?s:.))" : "(?:" + all + ")";
  }

  std::string_view in_;
  std::string_view source_;
  size_t at_ = 0;
  std::string out_;
  size_t atom_ = 0;             // where the last atom starts in out_
  std::vector<size_t> groups_;  // where the open groups start in out_
};

}  // namespace

std::string translate_oniguruma(std::string_view pattern, std::string_view source) {
  return Translator(pattern, source).run();
}

}  // namespace nibble
