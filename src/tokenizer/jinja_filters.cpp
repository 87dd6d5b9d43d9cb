// Filters on text, numbers and single values.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "tokenizer/jinja_operators.h"
#include "tokenizer/python_text.h"

namespace nibble::jinja {
namespace {

namespace text = python_text;

Value call_method(Runtime& runtime, const Value& self, std::string_view name, Arguments arguments) {
  return call_builtin(runtime, *find_method(self, name), self, arguments);
}

Value to_text_value(Runtime& runtime, const Value& self) {
  return self.is(Kind::text) ? self : runtime.text(to_text(runtime, self));
}

Value string(Runtime& runtime, const Value& self, const Bound&) { return to_text_value(runtime, self); }

Value trim(Runtime& runtime, const Value& self, const Bound& arguments) {
  std::vector<Value> positional;
  if (arguments[0] != nullptr) positional.push_back(*arguments[0]);
  return call_method(runtime, to_text_value(runtime, self), "strip", {std::move(positional), {}});
}

template <std::string (*kMap)(std::string_view)>
Value map_text(Runtime& runtime, const Value& self, const Bound&) {
  return runtime.text(kMap(to_text(runtime, self)));
}

/// jinja2's title: a word begins after white space, hyphens and opening brackets.
std::string title_words(std::string_view input) {
  std::string out, word;
  const auto flush = [&] {
    if (word.empty()) return;
    const std::string_view first = text::slice(word, 0, 1);
    out += text::upper(first) + text::lower(std::string_view(word).substr(first.size()));
    word.clear();
  };
  for (const char32_t code : text::decode(input)) {
    if (text::is_space(code) || code == '-' || code == '(' || code == '{' || code == '[' || code == '<') {
      flush();
      text::append_utf8(code, out);
    } else {
      text::append_utf8(code, word);
    }
  }
  flush();
  return out;
}

Value replace(Runtime& runtime, const Value& self, const Bound& arguments) {
  std::vector<Value> positional = {to_text_value(runtime, *arguments[0]), to_text_value(runtime, *arguments[1])};
  if (arguments[2] != nullptr && !arguments[2]->is(Kind::none)) positional.push_back(*arguments[2]);
  return call_method(runtime, to_text_value(runtime, self), "replace", {std::move(positional), {}});
}

Value center(Runtime& runtime, const Value& self, const Bound& arguments) {
  Value width = arguments[0] != nullptr ? *arguments[0] : integer(80);
  return call_method(runtime, to_text_value(runtime, self), "center", {{std::move(width)}, {}});
}

Value indent(Runtime& runtime, const Value& self, const Bound& arguments) {
  const std::string input(text_argument(runtime, &self, "indent"));
  std::string indention;
  if (arguments[0] != nullptr && arguments[0]->is(Kind::text)) {
    indention = arguments[0]->text();
  } else {
    const int64_t width = integer_argument(runtime, arguments[0], 4, "indent");
    runtime.charge_bytes(static_cast<size_t>(std::max<int64_t>(width, 0)));
    indention = std::string(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
  }
  const bool first = flag_argument(runtime, arguments[1], false), blank = flag_argument(runtime, arguments[2], false);
  std::string out = first ? indention : "";
  bool is_first = true;
  const std::string padded = input + "\n";
  for (const std::string_view line : text::split_lines(padded, false)) {
    if (!is_first) {
      out += '\n';
      if (blank || !line.empty()) {
        runtime.charge_bytes(indention.size());
        out += indention;
      }
    }
    is_first = false;
    out += line;
  }
  return runtime.text(std::move(out));
}

Value escape(Runtime& runtime, const Value& self, const Bound&) {
  std::string out;
  for (const char c : to_text(runtime, self)) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out += c;
    }
  }
  return runtime.text(std::move(out));
}

Value to_json_filter(Runtime& runtime, const Value& self, const Bound& arguments) {
  JsonStyle style;
  style.ensure_ascii = flag_argument(runtime, arguments[0], false);
  style.sort_keys = flag_argument(runtime, arguments[3], false);
  if (arguments[1] != nullptr && !arguments[1]->is(Kind::none)) {
    style.item_separator = ",";
    if (arguments[1]->is(Kind::text)) {
      style.indent = arguments[1]->text();
    } else {
      const int64_t width = std::max<int64_t>(0, integer_argument(runtime, arguments[1], 0, "tojson indent"));
      runtime.charge_bytes(static_cast<size_t>(width));
      style.indent = std::string(static_cast<size_t>(width), ' ');
    }
  }
  if (arguments[2] != nullptr && !arguments[2]->is(Kind::none)) {
    const std::vector<Value> separators = iterate(runtime, *arguments[2]);
    if (separators.size() != 2) runtime.fail_type("tojson separators: expected two");
    style.item_separator = text_argument(runtime, &separators[0], "tojson separators");
    style.key_separator = text_argument(runtime, &separators[1], "tojson separators");
  }
  return runtime.text(to_json(runtime, self, style));
}

Value default_value(Runtime& runtime, const Value& self, const Bound& arguments) {
  const bool is_absent =
      self.is(Kind::undefined) || (flag_argument(runtime, arguments[1], false) && !is_true(runtime, self));
  if (!is_absent) return self;
  return arguments[0] != nullptr ? *arguments[0] : runtime.text("");
}

/// Text as int() and float() read it; nullopt where they raise.
std::string digits_of(std::string_view input) {
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  input = text::strip(input, std::nullopt, true, true);
  std::string digits;
  for (size_t i = 0; i < input.size(); ++i) {
    const bool is_inside = i > 0 && i + 1 < input.size() && is_digit(input[i - 1]) && is_digit(input[i + 1]);
    if (input[i] != '_' || !is_inside) digits += input[i];
  }
  return digits;
}

std::optional<double> read_real(std::string_view input) {
  std::string digits = text::lower(digits_of(input));
  const char* begin = digits.c_str();
  if (*begin == '+') ++begin;
  double value = 0;
  const char* end = digits.c_str() + digits.size();
  if (begin == end || (*begin == '-' && digits[0] == '+')) return std::nullopt;
  const auto [stop, error] = std::from_chars(begin, end, value);
  if (stop != end || error == std::errc::invalid_argument) return std::nullopt;
  if (error == std::errc::result_out_of_range) return std::strtod(begin, nullptr);
  return value;
}

std::optional<int64_t> read_integer(std::string_view input, int base) {
  std::string digits = text::lower(digits_of(input));
  const bool is_negative = digits.starts_with('-');
  if (is_negative || digits.starts_with('+')) digits.erase(0, 1);
  for (const auto& [prefix, radix] : {std::pair{"0x", 16}, std::pair{"0o", 8}, std::pair{"0b", 2}}) {
    if (base == radix && digits.starts_with(prefix)) digits.erase(0, 2);
  }
  if (digits.empty() || digits[0] == '-') return std::nullopt;
  if (is_negative) digits.insert(0, 1, '-');
  int64_t value = 0;
  const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
  if (stop != digits.data() + digits.size() || error != std::errc()) return std::nullopt;
  return value;
}

std::optional<int64_t> truncate(double value) {
  if (!(std::fabs(value) < 9.2e18)) return std::nullopt;
  return static_cast<int64_t>(value);
}

Value to_integer(Runtime& runtime, const Value& self, const Bound& arguments) {
  require_defined(runtime, self);
  const Value absent = arguments[0] != nullptr ? *arguments[0] : integer(0);
  const int64_t base = integer_argument(runtime, arguments[1], 10, "int base");
  if (base < 2 || base > 36) runtime.fail_type("int base must be 2 to 36, not {}", base);
  if (self.is_integral()) return integer(self.integer());
  std::optional<int64_t> value;
  if (self.is(Kind::real)) value = truncate(self.real());
  if (self.is(Kind::text)) {
    value = read_integer(self.text(), static_cast<int>(base));
    if (const auto wide = value ? std::nullopt : read_real(self.text())) value = truncate(*wide);
  }
  return value ? integer(*value) : absent;
}

Value to_real(Runtime& runtime, const Value& self, const Bound& arguments) {
  require_defined(runtime, self);
  if (self.is_number()) return real(self.real());
  if (self.is(Kind::text)) {
    if (const auto value = read_real(self.text())) return real(*value);
  }
  return arguments[0] != nullptr ? *arguments[0] : real(0);
}

Value absolute(Runtime& runtime, const Value& self, const Bound&) {
  if (self.is(Kind::real)) return real(std::fabs(self.real()));
  if (self.is_integral()) return self.integer() < 0 ? negate(runtime, self) : integer(self.integer());
  require_defined(runtime, self);
  runtime.fail_type("abs: expected a number, got {}", type_name(self));
}

/// To a multiple of 10^digits, halves to the even one.
int64_t round_to_ten(int64_t value, int64_t digits) {
  if (digits > 18) return 0;
  const auto scale = static_cast<int64_t>(std::pow(10.0L, digits));
  int64_t quotient = value / scale;
  const int64_t rest = std::llabs(value % scale), half = scale / 2;
  if (rest > half || (rest == half && quotient % 2 != 0)) quotient += value < 0 ? -1 : 1;
  int64_t rounded = 0;
  return __builtin_mul_overflow(quotient, scale, &rounded) ? value : rounded;
}

Value round_number(Runtime& runtime, const Value& self, const Bound& arguments) {
  require_defined(runtime, self);
  if (!self.is_number()) runtime.fail_type("round: expected a number, got {}", type_name(self));
  const int64_t precision = integer_argument(runtime, arguments[0], 0, "round");
  const std::string_view method = arguments[1] != nullptr ? text_argument(runtime, arguments[1], "round") : "common";
  if (precision < -300 || precision > 300) runtime.fail_type("round: precision {}", precision);
  if (method == "common") {
    if (self.is_integral()) return integer(precision >= 0 ? self.integer() : round_to_ten(self.integer(), -precision));
    if (!std::isfinite(self.real())) return self;
    if (precision >= 0) {
      const std::string digits = fmt::format("{:.{}f}", self.real(), precision);
      runtime.charge_steps(2 * static_cast<int64_t>(digits.size()));
      return real(std::strtod(digits.c_str(), nullptr));
    }
  } else if (method != "ceil" && method != "floor") {
    runtime.fail_type("round: method '{}' is not common, ceil or floor", method);
  }
  const double scale = std::pow(10.0, static_cast<double>(precision)), scaled = self.real() * scale;
  return real((method == "ceil"    ? std::ceil(scaled)
               : method == "floor" ? std::floor(scaled)
                                   : std::nearbyint(scaled)) /
              scale);
}

Value length(Runtime& runtime, const Value& self, const Bound&) { return integer(length_of(runtime, self)); }

Value format(Runtime& runtime, const Value& self, Arguments& arguments) {
  const Value values = arguments.keywords.empty() ? runtime.tuple(std::move(arguments.positional)) : [&] {
    std::vector<std::pair<Value, Value>> entries;
    for (auto& [name, value] : arguments.keywords) entries.emplace_back(runtime.text(name), std::move(value));
    return runtime.dict(std::move(entries));
  }();
  return runtime.text(format_percent(runtime, to_text(runtime, self), values));
}

Value attribute(Runtime& runtime, const Value& self, const Bound& arguments) {
  return get_attribute(runtime, self, text_argument(runtime, arguments[0], "attr"));
}

Value count_words(Runtime& runtime, const Value& self, const Bound&) {
  int64_t words = 0;
  bool in_word = false;
  for (const char32_t code : text::decode(to_text(runtime, self))) {
    const bool is_word = text::is_alpha(code) || text::is_digit(code) || code == '_';
    words += is_word && !in_word ? 1 : 0;
    in_word = is_word;
  }
  return integer(words);
}

constexpr Builtin kFilters[] = {
    {"string", {}, 0, string, nullptr},
    {"safe", {}, 0, string, nullptr},
    {"trim", {"chars"}, 0, trim, nullptr},
    {"upper", {}, 0, map_text<text::upper>, nullptr},
    {"lower", {}, 0, map_text<text::lower>, nullptr},
    {"capitalize", {}, 0, map_text<text::capitalize>, nullptr},
    {"title", {}, 0, map_text<title_words>, nullptr},
    {"replace", {"old", "new", "count"}, 2, replace, nullptr},
    {"center", {"width"}, 0, center, nullptr},
    {"indent", {"width", "first", "blank"}, 0, indent, nullptr},
    {"escape", {}, 0, escape, nullptr},
    {"e", {}, 0, escape, nullptr},
    {"forceescape", {}, 0, escape, nullptr},
    {"tojson", {"ensure_ascii", "indent", "separators", "sort_keys"}, 0, to_json_filter, nullptr},
    {"default", {"default_value", "boolean"}, 0, default_value, nullptr},
    {"d", {"default_value", "boolean"}, 0, default_value, nullptr},
    {"int", {"default", "base"}, 0, to_integer, nullptr},
    {"float", {"default"}, 0, to_real, nullptr},
    {"abs", {}, 0, absolute, nullptr},
    {"round", {"precision", "method"}, 0, round_number, nullptr},
    {"length", {}, 0, length, nullptr},
    {"count", {}, 0, length, nullptr},
    {"format", {}, 0, nullptr, format},
    {"attr", {"name"}, 1, attribute, nullptr},
    {"wordcount", {}, 0, count_words, nullptr},
};

}  // namespace

const Builtin* find_filter(std::string_view name) {
  const Builtin* found = find_builtin(kFilters, name);
  return found != nullptr ? found : find_list_filter(name);
}

}  // namespace nibble::jinja
