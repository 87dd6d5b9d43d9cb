// Python's str on UTF-8, with Unicode properties from utf8proc.
#include "tokenizer/python_text.h"

#include <fmt/format.h>
#include <string.h>
#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cmath>

namespace nibble::python_text {
namespace {

/// One code point at `position`, which moves past it.
char32_t next_code_point(std::string_view text, size_t& position) {
  const auto lead = static_cast<unsigned char>(text[position]);
  if (lead < 0x80) return static_cast<char32_t>(text[position++]);
  utf8proc_int32_t code = 0;
  const auto size = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data() + position),
                                     static_cast<utf8proc_ssize_t>(std::min<size_t>(4, text.size() - position)), &code);
  if (size <= 0) {
    ++position;
    return 0xDC80u + lead - 0x80u;
  }
  position += static_cast<size_t>(size);
  return static_cast<char32_t>(code);
}

/// Start of the code point that ends at `position`.
size_t previous_start(std::string_view text, size_t position) {
  for (size_t size = 1; size <= std::min<size_t>(4, position); ++size) {
    size_t end = position - size;
    next_code_point(text, end);
    if (end == position && (size > 1 || static_cast<unsigned char>(text[position - 1]) < 0x80)) return position - size;
  }
  return position - 1;
}

template <typename Map>
std::string map_code_points(std::string_view text, Map&& map) {
  std::string out;
  out.reserve(text.size());
  for (size_t position = 0; position < text.size();) {
    const char32_t code = next_code_point(text, position);
    map(code, out);
  }
  return out;
}

utf8proc_category_t category(char32_t code) { return utf8proc_category(static_cast<utf8proc_int32_t>(code)); }

void append_upper(char32_t code, std::string& out) {
  if (code == 0xDF) {
    out += "SS";
  } else {
    append_utf8(static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(code))), out);
  }
}

void append_title(char32_t code, std::string& out) {
  if (code == 0xDF) {
    out += "Ss";
  } else {
    append_utf8(static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(code))), out);
  }
}

void append_lower(char32_t code, std::string& out) {
  append_utf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(code))), out);
}

bool is_printable(char32_t code) {
  if (code == ' ') return true;
  switch (category(code)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    default:
      return true;
  }
}

}  // namespace

std::u32string decode(std::string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (size_t position = 0; position < text.size();) out.push_back(next_code_point(text, position));
  return out;
}

void append_utf8(char32_t code, std::string& out) {
  if (code < 0x80) {
    out.push_back(static_cast<char>(code));
  } else if (code >= 0xDC80 && code <= 0xDCFF) {
    out.push_back(static_cast<char>(code - 0xDC00));
  } else {
    utf8proc_uint8_t bytes[4];
    const bool is_scalar = code <= 0x10FFFF && (code < 0xD800 || code > 0xDFFF);
    const auto size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(is_scalar ? code : U'\uFFFD'), bytes);
    out.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(size));
  }
}

std::string encode(std::u32string_view code_points) {
  std::string out;
  out.reserve(code_points.size());
  for (const char32_t code : code_points) append_utf8(code, out);
  return out;
}

int64_t length(std::string_view text) {
  int64_t count = 0;
  for (size_t position = 0; position < text.size(); ++count) next_code_point(text, position);
  return count;
}

std::string_view slice(std::string_view text, int64_t start, int64_t stop) {
  size_t position = 0;
  int64_t index = 0;
  for (; index < start; ++index) next_code_point(text, position);
  const size_t begin = position;
  for (; index < stop; ++index) next_code_point(text, position);
  return text.substr(begin, position - begin);
}

bool is_space(char32_t code) {
  if (code <= 0x20) return (code >= 9 && code <= 13) || (code >= 0x1C && code <= 0x20);
  return code == 0x85 ||
         (code > 0x85 && (category(code) == UTF8PROC_CATEGORY_ZS || category(code) == UTF8PROC_CATEGORY_ZL ||
                          category(code) == UTF8PROC_CATEGORY_ZP));
}

bool is_alpha(char32_t code) {
  const auto kind = category(code);
  return kind >= UTF8PROC_CATEGORY_LU && kind <= UTF8PROC_CATEGORY_LO;
}

bool is_digit(char32_t code) { return category(code) == UTF8PROC_CATEGORY_ND; }
bool is_upper(char32_t code) { return category(code) == UTF8PROC_CATEGORY_LU; }
bool is_lower(char32_t code) { return category(code) == UTF8PROC_CATEGORY_LL; }

std::string upper(std::string_view text) { return map_code_points(text, append_upper); }
std::string lower(std::string_view text) { return map_code_points(text, append_lower); }

std::string title(std::string_view text) {
  bool in_word = false;
  return map_code_points(text, [&](char32_t code, std::string& out) {
    in_word ? append_lower(code, out) : append_title(code, out);
    const auto kind = category(code);
    in_word = kind == UTF8PROC_CATEGORY_LU || kind == UTF8PROC_CATEGORY_LL || kind == UTF8PROC_CATEGORY_LT;
  });
}

std::string capitalize(std::string_view text) {
  bool is_first = true;
  return map_code_points(text, [&](char32_t code, std::string& out) {
    is_first ? append_title(code, out) : append_lower(code, out);
    is_first = false;
  });
}

std::string_view strip(std::string_view text, std::optional<std::string_view> characters, bool left, bool right) {
  std::u32string set = characters ? decode(*characters) : std::u32string();
  std::sort(set.begin(), set.end());
  const auto matches = [&](char32_t code) {
    return characters ? std::binary_search(set.begin(), set.end(), code) : is_space(code);
  };
  size_t begin = 0;
  while (left && begin < text.size()) {
    size_t end = begin;
    if (!matches(next_code_point(text, end))) break;
    begin = end;
  }
  size_t end = text.size();
  while (right && end > begin) {
    const size_t start = previous_start(text, end);
    size_t position = start;
    if (!matches(next_code_point(text, position))) break;
    end = start;
  }
  return text.substr(begin, end - begin);
}

size_t find(std::string_view text, std::string_view part, size_t from) {
  if (from > text.size()) return text.npos;
  if (part.empty()) return from;
  const void* found = memmem(text.data() + from, text.size() - from, part.data(), part.size());
  return found == nullptr ? text.npos : static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

size_t rfind(std::string_view text, std::string_view part) {
  if (part.size() > text.size()) return text.npos;
  // Backwards, because memmem takes linear time and std::string_view::rfind does not.
  const size_t at = find(std::string(text.rbegin(), text.rend()), std::string(part.rbegin(), part.rend()));
  return at == text.npos ? text.npos : text.size() - at - part.size();
}

namespace {

std::vector<std::string_view> split_on_space(std::string_view text, int64_t limit) {
  std::vector<std::string_view> parts;
  for (text = strip(text, std::nullopt, true, false); !text.empty();) {
    if (limit >= 0 && static_cast<int64_t>(parts.size()) == limit) {
      parts.push_back(text);
      return parts;
    }
    size_t end = 0;
    for (size_t next = 0; end < text.size() && !is_space(next_code_point(text, next));) end = next;
    parts.push_back(text.substr(0, end));
    text = strip(text.substr(end), std::nullopt, true, false);
  }
  return parts;
}

std::vector<std::string_view> rsplit_on_space(std::string_view text, int64_t limit) {
  std::vector<std::string_view> parts;
  for (text = strip(text, std::nullopt, false, true); !text.empty();) {
    size_t begin = text.size();
    if (limit >= 0 && static_cast<int64_t>(parts.size()) == limit) begin = 0;
    while (begin > 0) {
      const size_t start = previous_start(text, begin);
      size_t position = start;
      if (is_space(next_code_point(text, position))) break;
      begin = start;
    }
    parts.push_back(text.substr(begin));
    text = strip(text.substr(0, begin), std::nullopt, false, true);
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

}  // namespace

std::vector<std::string_view> split(std::string_view text, std::optional<std::string_view> separator, int64_t limit) {
  if (!separator) return split_on_space(text, limit);
  std::vector<std::string_view> parts;
  size_t begin = 0;
  while (limit < 0 || static_cast<int64_t>(parts.size()) < limit) {
    const size_t end = find(text, *separator, begin);
    if (end == text.npos) break;
    parts.push_back(text.substr(begin, end - begin));
    begin = end + separator->size();
  }
  parts.push_back(text.substr(begin));
  return parts;
}

std::vector<std::string_view> rsplit(std::string_view text, std::optional<std::string_view> separator, int64_t limit) {
  if (!separator) return rsplit_on_space(text, limit);
  const std::string mirrored(text.rbegin(), text.rend()), wanted(separator->rbegin(), separator->rend());
  std::vector<std::string_view> parts = split(mirrored, wanted, limit);
  for (auto& part : parts) {
    const auto end = static_cast<size_t>(part.data() - mirrored.data()) + part.size();
    part = text.substr(text.size() - end, part.size());
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t position = 0; position < text.size();) {
    const size_t start = position;
    const char32_t code = next_code_point(text, position);
    const bool is_break = (code >= 10 && code <= 13) || (code >= 0x1C && code <= 0x1E) || code == 0x85 ||
                          code == 0x2028 || code == 0x2029;
    if (!is_break) continue;
    if (code == '\r' && position < text.size() && text[position] == '\n') ++position;
    lines.push_back(text.substr(begin, (keep_ends ? position : start) - begin));
    begin = position;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

std::string replace(std::string_view text, std::string_view from, std::string_view to, int64_t limit) {
  std::string out;
  size_t begin = 0;
  for (int64_t count = 0; limit < 0 || count < limit; ++count) {
    size_t end = find(text, from, begin);
    if (end == text.npos) break;
    if (from.empty()) {  // between all code points and at both ends
      out += to;
      if (begin == text.size()) return out;
      next_code_point(text, end);
      out += text.substr(begin, end - begin);
      begin = end;
      continue;
    }
    out += text.substr(begin, end - begin);
    out += to;
    begin = end + from.size();
  }
  out += text.substr(begin);
  return out;
}

std::string repr(std::string_view text) {
  const bool has_single = text.find('\'') != text.npos;
  const char quote = has_single && text.find('"') == text.npos ? '"' : '\'';
  std::string out(1, quote);
  for (size_t position = 0; position < text.size();) {
    const char32_t code = next_code_point(text, position);
    if (code == static_cast<char32_t>(quote) || code == '\\') {
      out += '\\';
      out += static_cast<char>(code);
    } else if (code == '\n') {
      out += "\\n";
    } else if (code == '\r') {
      out += "\\r";
    } else if (code == '\t') {
      out += "\\t";
    } else if (is_printable(code)) {
      append_utf8(code, out);
    } else if (code < 0x100) {
      out += fmt::format("\\x{:02x}", static_cast<uint32_t>(code));
    } else if (code < 0x10000) {
      out += fmt::format("\\u{:04x}", static_cast<uint32_t>(code));
    } else {
      out += fmt::format("\\U{:08x}", static_cast<uint32_t>(code));
    }
  }
  out += quote;
  return out;
}

std::string repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  const std::string_view scientific(buffer, static_cast<size_t>(end - buffer));
  const size_t mark = scientific.find('e');
  const int exponent = std::atoi(std::string(scientific.substr(mark + 1)).c_str());
  if (exponent < -4 || exponent >= 16) return std::string(scientific);
  std::string digits;
  for (const char c : scientific.substr(0, mark)) {
    if (c >= '0' && c <= '9') digits += c;
  }
  const std::string sign = value < 0 || std::signbit(value) ? "-" : "";
  if (exponent < 0) return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  const auto whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
  return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

}  // namespace nibble::python_text
