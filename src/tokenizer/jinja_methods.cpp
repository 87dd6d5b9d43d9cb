// Methods of Python's str, list, tuple and dict, and of the loop variable.
#include <algorithm>

#include "tokenizer/jinja_loop.h"
#include "tokenizer/jinja_operators.h"
#include "tokenizer/python_text.h"

namespace nibble::jinja {
namespace {

namespace text = python_text;

std::optional<std::string_view> optional_text(Runtime& runtime, const Value* value, std::string_view what) {
  if (value == nullptr || value->is(Kind::none)) return std::nullopt;
  return text_argument(runtime, value, what);
}

template <bool kLeft, bool kRight>
Value strip(Runtime& runtime, const Value& self, const Bound& arguments) {
  const auto characters = optional_text(runtime, arguments[0], "strip");
  return runtime.text(std::string(text::strip(self.text(), characters, kLeft, kRight)));
}

template <bool kFromRight>
Value split(Runtime& runtime, const Value& self, const Bound& arguments) {
  const auto separator = optional_text(runtime, arguments[0], "split");
  if (separator && separator->empty()) runtime.fail_type("split: empty separator");
  const int64_t limit = integer_argument(runtime, arguments[1], -1, "split");
  std::vector<Value> parts;
  for (const std::string_view part :
       kFromRight ? text::rsplit(self.text(), separator, limit) : text::split(self.text(), separator, limit)) {
    parts.push_back(runtime.text(std::string(part)));
  }
  return runtime.list(std::move(parts));
}

Value splitlines(Runtime& runtime, const Value& self, const Bound& arguments) {
  std::vector<Value> lines;
  for (const std::string_view line : text::split_lines(self.text(), flag_argument(runtime, arguments[0], false))) {
    lines.push_back(runtime.text(std::string(line)));
  }
  return runtime.list(std::move(lines));
}

/// The part of text between optional bounds in code points; nullopt if they exclude even the empty text.
std::optional<std::string_view> bounded(Runtime& runtime, const Value& self, const Value* start, const Value* stop) {
  if (start == nullptr && stop == nullptr) return self.text();
  const int64_t size = text::length(self.text());
  const auto bound = [&](const Value* value, int64_t absent) {
    if (value == nullptr || value->is(Kind::none)) return absent;
    const int64_t index = integer_argument(runtime, value, absent, "text bound");
    return index < 0 ? std::max<int64_t>(0, index + size) : index;
  };
  const int64_t from = bound(start, 0), to = std::min(bound(stop, size), size);
  if (from > to) return std::nullopt;
  return text::slice(self.text(), from, to);
}

template <bool kStart>
Value has_affix(Runtime& runtime, const Value& self, const Bound& arguments) {
  const auto part = bounded(runtime, self, arguments[1], arguments[2]);
  const auto matches = [&](const Value& affix) {
    const std::string_view wanted = text_argument(runtime, &affix, kStart ? "startswith" : "endswith");
    runtime.charge_scan(wanted);
    return part && (kStart ? part->starts_with(wanted) : part->ends_with(wanted));
  };
  if (!arguments[0]->is(Kind::tuple)) return boolean(matches(*arguments[0]));
  return boolean(std::any_of(arguments[0]->items().begin(), arguments[0]->items().end(), matches));
}

template <std::string (*kMap)(std::string_view)>
Value map_text(Runtime& runtime, const Value& self, const Bound&) {
  return runtime.text(kMap(self.text()));
}

Value replace(Runtime& runtime, const Value& self, const Bound& arguments) {
  const std::string_view from = text_argument(runtime, arguments[0], "replace");
  const std::string_view to = text_argument(runtime, arguments[1], "replace");
  const int64_t limit = integer_argument(runtime, arguments[2], -1, "replace");
  const size_t worst = from.empty() ? self.text().size() + 1 : self.text().size() / from.size();
  size_t added = 0;  // refused before it is made
  if (worst > 0 && to.size() > from.size()) {
    size_t count = 0;
    for (size_t at = 0; !from.empty() && (at = text::find(self.text(), from, at)) != std::string::npos;
         at += from.size())
      ++count;
    if (__builtin_mul_overflow(from.empty() ? worst : count, to.size(), &added)) added = SIZE_MAX;
  }
  runtime.charge_bytes(added);
  return runtime.text(text::replace(self.text(), from, to, limit));
}

template <bool kFromRight, bool kMustExist>
Value find(Runtime& runtime, const Value& self, const Bound& arguments) {
  const std::string_view wanted = text_argument(runtime, arguments[0], "find");
  const auto part = bounded(runtime, self, arguments[1], arguments[2]);
  size_t at = std::string::npos;
  if (part) at = kFromRight ? text::rfind(*part, wanted) : text::find(*part, wanted);
  if (at == std::string::npos) {
    if (kMustExist) runtime.fail_type("index: substring not found");
    return integer(-1);
  }
  const auto skipped = static_cast<size_t>(part->data() - self.text().data());
  return integer(text::length(std::string_view(self.text()).substr(0, skipped + at)));
}

Value count_text(Runtime& runtime, const Value& self, const Bound& arguments) {
  const std::string_view wanted = text_argument(runtime, arguments[0], "count");
  const auto part = bounded(runtime, self, arguments[1], arguments[2]);
  if (!part) return integer(0);
  if (wanted.empty()) return integer(text::length(*part) + 1);
  int64_t count = 0;
  for (size_t at = 0; (at = text::find(*part, wanted, at)) != std::string::npos; at += wanted.size()) ++count;
  return integer(count);
}

Value join(Runtime& runtime, const Value& self, const Bound& arguments) {
  std::string out;
  bool is_first = true;
  for (const Value& item : iterate(runtime, *arguments[0])) {
    const std::string_view part = text_argument(runtime, &item, "join");
    runtime.charge_bytes(part.size() + self.text().size());
    if (!is_first) out += self.text();
    is_first = false;
    out += part;
  }
  return runtime.text(std::move(out));
}

template <bool (*kTest)(char32_t)>
Value all_of(Runtime&, const Value& self, const Bound&) {
  const std::u32string codes = text::decode(self.text());
  return boolean(!codes.empty() && std::all_of(codes.begin(), codes.end(), kTest));
}

bool is_alphanumeric(char32_t code) { return text::is_alpha(code) || text::is_digit(code); }

/// isupper and islower: at least one cased character, and none of the other case.
template <bool (*kWanted)(char32_t), bool (*kOther)(char32_t)>
Value has_case(Runtime&, const Value& self, const Bound&) {
  const std::u32string codes = text::decode(self.text());
  return boolean(std::any_of(codes.begin(), codes.end(), kWanted) && std::none_of(codes.begin(), codes.end(), kOther));
}

/// ljust, rjust, center (Python's rounding) and zfill.
enum class Side : uint8_t { left, right, both, zero };
template <Side kSide>
Value pad(Runtime& runtime, const Value& self, const Bound& arguments) {
  const int64_t width = integer_argument(runtime, arguments[0], 0, "width"), length = text::length(self.text());
  if (width <= length) return self;
  const int64_t missing = width - length;
  const std::string fill = kSide == Side::zero ? "0"
                           : arguments[1]      ? std::string(text_argument(runtime, arguments[1], "fill"))
                                               : " ";
  if (text::length(fill) != 1) runtime.fail_type("the fill character must be one character");
  for (int i = 0; i < 4; ++i) runtime.charge_bytes(static_cast<size_t>(missing));  // four times that could overflow
  int64_t left = kSide == Side::left ? 0 : missing;
  if (kSide == Side::both) left = missing / 2 + (missing & width & 1);
  std::string out, body = self.text();
  if (kSide == Side::zero && !body.empty() && (body[0] == '-' || body[0] == '+')) {
    out += body[0];
    body.erase(0, 1);
  }
  for (int64_t i = 0; i < left; ++i) out += fill;
  out += body;
  for (int64_t i = left; i < missing; ++i) out += fill;
  return runtime.text(std::move(out));
}

template <bool kFromRight>
Value partition(Runtime& runtime, const Value& self, const Bound& arguments) {
  const std::string_view whole = self.text(), separator = text_argument(runtime, arguments[0], "partition");
  if (separator.empty()) runtime.fail_type("partition: empty separator");
  const size_t at = kFromRight ? text::rfind(whole, separator) : text::find(whole, separator);
  const auto make = [&](std::string_view part) { return runtime.text(std::string(part)); };
  if (at == std::string::npos) {
    return kFromRight ? runtime.tuple({make(""), make(""), self}) : runtime.tuple({self, make(""), make("")});
  }
  return runtime.tuple({make(whole.substr(0, at)), make(separator), make(whole.substr(at + separator.size()))});
}

template <bool kPrefix>
Value remove_affix(Runtime& runtime, const Value& self, const Bound& arguments) {
  std::string_view whole = self.text();
  const std::string_view affix = text_argument(runtime, arguments[0], kPrefix ? "removeprefix" : "removesuffix");
  if (kPrefix && whole.starts_with(affix)) whole.remove_prefix(affix.size());
  if (!kPrefix && whole.ends_with(affix)) whole.remove_suffix(affix.size());
  return runtime.text(std::string(whole));
}

/// str.format with plain fields: {}, {0}, {name}.
Value format(Runtime& runtime, const Value& self, Arguments& arguments) {
  std::string out;
  const std::string& form = self.text();
  size_t automatic = 0;
  for (size_t i = 0; i < form.size(); ++i) {
    const char c = form[i];
    if ((c == '{' || c == '}') && i + 1 < form.size() && form[i + 1] == c) {
      out += form[i++];
    } else if (c == '}') {
      runtime.fail_type("format: single '}}'");
    } else if (c != '{') {
      out += c;
    } else {
      const size_t end = form.find('}', i);
      if (end == std::string::npos) runtime.fail_type("format: '{{' without '}}'");
      const std::string field = form.substr(i + 1, end - i - 1);
      if (field.find_first_of(":!.[{") != std::string::npos) {
        runtime.fail_here(ErrorCode::unsupported, "format field '{{{}}}'", field);
      }
      const bool is_index = field.find_first_not_of("0123456789") == std::string::npos && field.size() < 6;
      const Value* value = nullptr;
      if (is_index) {
        const size_t index = field.empty() ? automatic++ : static_cast<size_t>(std::stoul(field));
        if (index < arguments.positional.size()) value = &arguments.positional[index];
      }
      for (const auto& [name, keyword] : arguments.keywords) {
        if (!is_index && name == field) value = &keyword;
      }
      if (value == nullptr) runtime.fail_type("format: no argument for '{{{}}}'", field);
      out += to_text(runtime, *value);
      i = end;
    }
  }
  return runtime.text(std::move(out));
}

constexpr Builtin kTextMethods[] = {
    {"strip", {"chars"}, 0, strip<true, true>, nullptr},
    {"lstrip", {"chars"}, 0, strip<true, false>, nullptr},
    {"rstrip", {"chars"}, 0, strip<false, true>, nullptr},
    {"split", {"sep", "maxsplit"}, 0, split<false>, nullptr},
    {"rsplit", {"sep", "maxsplit"}, 0, split<true>, nullptr},
    {"splitlines", {"keepends"}, 0, splitlines, nullptr},
    {"startswith", {"prefix", "start", "end"}, 1, has_affix<true>, nullptr},
    {"endswith", {"suffix", "start", "end"}, 1, has_affix<false>, nullptr},
    {"upper", {}, 0, map_text<text::upper>, nullptr},
    {"lower", {}, 0, map_text<text::lower>, nullptr},
    {"casefold", {}, 0, map_text<text::lower>, nullptr},
    {"title", {}, 0, map_text<text::title>, nullptr},
    {"capitalize", {}, 0, map_text<text::capitalize>, nullptr},
    {"replace", {"old", "new", "count"}, 2, replace, nullptr},
    {"find", {"sub", "start", "end"}, 1, find<false, false>, nullptr},
    {"rfind", {"sub", "start", "end"}, 1, find<true, false>, nullptr},
    {"index", {"sub", "start", "end"}, 1, find<false, true>, nullptr},
    {"rindex", {"sub", "start", "end"}, 1, find<true, true>, nullptr},
    {"count", {"sub", "start", "end"}, 1, count_text, nullptr},
    {"join", {"iterable"}, 1, join, nullptr},
    {"isdigit", {}, 0, all_of<text::is_digit>, nullptr},
    {"isdecimal", {}, 0, all_of<text::is_digit>, nullptr},
    {"isnumeric", {}, 0, all_of<text::is_digit>, nullptr},
    {"isalpha", {}, 0, all_of<text::is_alpha>, nullptr},
    {"isalnum", {}, 0, all_of<is_alphanumeric>, nullptr},
    {"isspace", {}, 0, all_of<text::is_space>, nullptr},
    {"isupper", {}, 0, has_case<text::is_upper, text::is_lower>, nullptr},
    {"islower", {}, 0, has_case<text::is_lower, text::is_upper>, nullptr},
    {"ljust", {"width", "fillchar"}, 1, pad<Side::left>, nullptr},
    {"rjust", {"width", "fillchar"}, 1, pad<Side::right>, nullptr},
    {"center", {"width", "fillchar"}, 1, pad<Side::both>, nullptr},
    {"zfill", {"width"}, 1, pad<Side::zero>, nullptr},
    {"partition", {"sep"}, 1, partition<false>, nullptr},
    {"rpartition", {"sep"}, 1, partition<true>, nullptr},
    {"removeprefix", {"prefix"}, 1, remove_affix<true>, nullptr},
    {"removesuffix", {"suffix"}, 1, remove_affix<false>, nullptr},
    {"format", {}, 0, nullptr, format},
};

}  // namespace

const Builtin* find_method(const Value& self, std::string_view name) {
  return self.is(Kind::text) ? find_builtin(kTextMethods, name) : find_container_method(self, name);
}

}  // namespace nibble::jinja
