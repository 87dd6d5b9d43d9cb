// The % operator on text: Python's printf-style formatting.
#include <cmath>

#include "tokenizer/jinja_operators.h"
#include "tokenizer/python_text.h"

namespace nibble::jinja {
namespace {

struct Field {
  bool left = false, zero = false, plus = false, space = false;
  int width = 0;
  int precision = -1;
};

std::string pad(std::string body, const Field& field, bool is_number) {
  const auto missing = field.width - python_text::length(body);
  if (missing <= 0) return body;
  const auto count = static_cast<size_t>(missing);
  if (field.left) return body + std::string(count, ' ');
  if (!field.zero || !is_number) return std::string(count, ' ') + body;
  const size_t sign = !body.empty() && (body[0] == '-' || body[0] == '+' || body[0] == ' ') ? 1 : 0;
  return body.insert(sign, count, '0');
}

std::string format_number(Runtime& runtime, const Value& value, const Field& field, char type) {
  require_defined(runtime, value);
  if (!value.is_number()) runtime.fail_type("%{}: expected a number, got {}", type, type_name(value));
  const char* sign = field.plus ? "+" : field.space ? " " : "";
  const int precision = field.precision < 0 ? 6 : field.precision;
  if (type == 'd' || type == 'i' || type == 'u' || type == 'x' || type == 'X' || type == 'o') {
    if (value.is(Kind::real) && !(std::fabs(value.real()) < 9.2e18))
      runtime.fail_type("%{}: {} is no integer", type, value.real());
    const int64_t whole = value.is(Kind::real) ? static_cast<int64_t>(value.real()) : value.integer();
    std::string digits = type == 'x'   ? fmt::format("{:x}", whole)
                         : type == 'X' ? fmt::format("{:X}", whole)
                         : type == 'o' ? fmt::format("{:o}", whole)
                                       : std::to_string(whole);
    return whole < 0 ? digits : sign + digits;
  }
  const double wide = value.real();
  std::string digits = type == 'f' || type == 'F' ? fmt::format("{:.{}f}", wide, precision)
                       : type == 'e'              ? fmt::format("{:.{}e}", wide, precision)
                       : type == 'E'              ? fmt::format("{:.{}E}", wide, precision)
                       : type == 'g'              ? fmt::format("{:.{}g}", wide, precision)
                                                  : fmt::format("{:.{}G}", wide, precision);
  runtime.charge_steps(2 * static_cast<int64_t>(digits.size()));  // exact digits of large numbers are long division
  return std::signbit(wide) ? digits : sign + digits;
}

class Formatter {
 public:
  Formatter(Runtime& runtime, std::string_view format, const Value& values)
      : runtime_(runtime), format_(format), values_(values), is_tuple_(values.is(Kind::tuple)) {}

  std::string run() {
    while (at_ < format_.size()) {
      const char c = format_[at_++];
      if (c != '%') {
        out_ += c;
      } else if (at_ < format_.size() && format_[at_] == '%') {
        out_ += format_[at_++];
      } else {
        write_field();
      }
    }
    const size_t given = is_tuple_                                         ? values_.items().size()
                         : values_.is(Kind::dict) || values_.is_sequence() ? used_
                                                                           : 1;
    if (used_ < given) runtime_.fail_type("%: not all values were used");
    return std::move(out_);
  }

 private:
  const Value& next_value() {
    const size_t index = used_++;
    if (is_tuple_ ? index >= values_.items().size() : index > 0) runtime_.fail_type("%: too few values");
    return is_tuple_ ? values_.items()[index] : values_;
  }

  int read_number() {
    if (at_ < format_.size() && format_[at_] == '*') {
      ++at_;
      const int64_t given = integer_argument(runtime_, &next_value(), 0, "%*");
      if (given < 0 || given > kMaxWidth) runtime_.fail_type("%: width {}", given);
      return static_cast<int>(given);
    }
    int number = 0;
    while (at_ < format_.size() && format_[at_] >= '0' && format_[at_] <= '9') {
      number = number * 10 + (format_[at_++] - '0');
      if (number > kMaxWidth) runtime_.fail_type("%: a width above {}", kMaxWidth);
    }
    return number;
  }

  void write_field() {
    std::optional<Value> named;
    if (at_ < format_.size() && format_[at_] == '(') {
      const size_t end = format_.find(')', at_);
      if (end == format_.npos || !values_.is(Kind::dict)) runtime_.fail_type("%: a named field needs a dict");
      named = get_item(runtime_, values_, runtime_.text(std::string(format_.substr(at_ + 1, end - at_ - 1))));
      require_defined(runtime_, *named);
      at_ = end + 1;
    }
    Field field;
    for (; at_ < format_.size(); ++at_) {
      const char c = format_[at_];
      if (c == '-')
        field.left = true;
      else if (c == '0')
        field.zero = true;
      else if (c == '+')
        field.plus = true;
      else if (c == ' ')
        field.space = true;
      else if (c != '#')
        break;
    }
    field.width = read_number();
    if (at_ < format_.size() && format_[at_] == '.') {
      ++at_;
      field.precision = read_number();
    }
    if (at_ == format_.size()) runtime_.fail_type("%: incomplete format");
    const char type = format_[at_++];
    const Value value = named ? *named : next_value();
    runtime_.charge_bytes(static_cast<size_t>(field.width));
    out_ += pad(convert(value, field, type), field, type != 's' && type != 'r');
  }

  std::string convert(const Value& value, const Field& field, char type) {
    if (type == 's' || type == 'r') {
      std::string body;
      if (type == 's')
        body = to_text(runtime_, value);
      else
        append_repr(runtime_, value, body);
      if (field.precision < 0) return body;
      return std::string(python_text::slice(body, 0, std::min<int64_t>(field.precision, python_text::length(body))));
    }
    if (std::string_view("diuxXofFeEgG").find(type) == std::string_view::npos) {
      runtime_.fail_here(ErrorCode::unsupported, "%{}", type);
    }
    return format_number(runtime_, value, field, type);
  }

  static constexpr int kMaxWidth = 400;
  Runtime& runtime_;
  std::string_view format_;
  const Value& values_;
  bool is_tuple_;
  size_t at_ = 0;
  size_t used_ = 0;
  std::string out_;
};

}  // namespace

std::string format_percent(Runtime& runtime, std::string_view format, const Value& values) {
  return Formatter(runtime, format, values).run();
}

}  // namespace nibble::jinja
