// Truth, equality, order and arithmetic as Python defines them.
#include "tokenizer/jinja_operators.h"

#include <cmath>

#include "tokenizer/python_text.h"

namespace nibble::jinja {

void require_defined(Runtime& runtime, const Value& value) {
  if (value.is(Kind::undefined)) runtime.fail_type("{} is undefined", *std::get<Undefined>(value.data).name);
}

bool is_true(Runtime&, const Value& value) {
  switch (value.kind()) {
    case Kind::undefined:
    case Kind::none:
      return false;
    case Kind::boolean:
    case Kind::integer:
      return value.integer() != 0;
    case Kind::real:
      return value.real() != 0;
    case Kind::text:
      return !value.text().empty();
    case Kind::list:
    case Kind::tuple:
      return !value.items().empty();
    case Kind::dict:
      return !value.entries().empty();
    default:
      return true;
  }
}

namespace {

bool are_items_equal(Runtime& runtime, const std::vector<Value>& a, const std::vector<Value>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!are_equal(runtime, a[i], b[i])) return false;
  }
  return true;
}

bool are_dicts_equal(Runtime& runtime, const Value& a, const Value& b) {
  if (a.entries().size() != b.entries().size()) return false;
  for (const auto& [key, value] : a.entries()) {
    const Value* other = find_key(runtime, b, key);
    if (other == nullptr || !are_equal(runtime, value, *other)) return false;
  }
  return true;
}

/// Whether a and b are the same namespace, function, iterator or loop.
bool are_identical(const Value& a, const Value& b) {
  return std::visit(
      [&](const auto& held) {
        using T = std::decay_t<decltype(held)>;
        if constexpr (requires { held.get(); }) {
          return held == std::get<T>(b.data);
        } else {
          return true;
        }
      },
      a.data);
}

}  // namespace

bool are_equal(Runtime& runtime, const Value& a, const Value& b) {
  runtime.charge_steps(1);
  if (a.is_integral() && b.is_integral()) return a.integer() == b.integer();
  if (a.is_number() && b.is_number()) return a.real() == b.real();
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::text:
      runtime.charge_scan(a.text());
      return a.text() == b.text();
    case Kind::list:
    case Kind::tuple:
      return are_items_equal(runtime, a.items(), b.items());
    case Kind::dict:
      return are_dicts_equal(runtime, a, b);
    default:
      return are_identical(a, b);
  }
}

std::optional<int> order_of(Runtime& runtime, const Value& a, const Value& b, std::string_view symbol) {
  runtime.charge_steps(1);
  require_defined(runtime, a);
  require_defined(runtime, b);
  const auto order = [](const auto& x, const auto& y) { return x < y ? -1 : y < x ? 1 : 0; };
  if (a.is_integral() && b.is_integral()) return order(a.integer(), b.integer());
  if (a.is_number() && b.is_number()) {
    if (std::isnan(a.real()) || std::isnan(b.real())) return std::nullopt;
    return order(a.real(), b.real());
  }
  if (a.is(Kind::text) && b.is(Kind::text)) {
    runtime.charge_scan(a.text());
    return order(a.text().compare(b.text()), 0);
  }
  if (a.is_sequence() && a.kind() == b.kind()) {
    for (size_t i = 0; i < std::min(a.items().size(), b.items().size()); ++i) {
      if (!are_equal(runtime, a.items()[i], b.items()[i])) return order_of(runtime, a.items()[i], b.items()[i], symbol);
    }
    return order(a.items().size(), b.items().size());
  }
  runtime.fail_type("'{}' is not defined between {} and {}", symbol, type_name(a), type_name(b));
}

bool contains(Runtime& runtime, const Value& container, const Value& item) {
  switch (container.kind()) {
    case Kind::undefined:
      return false;
    case Kind::text:
      runtime.charge_scan(container.text());
      return python_text::find(container.text(), text_argument(runtime, &item, "'in' text")) != std::string::npos;
    case Kind::dict:
      return find_key(runtime, container, item) != nullptr;
    case Kind::list:
    case Kind::tuple:
      for (const Value& candidate : container.items()) {
        if (are_equal(runtime, candidate, item)) return true;
      }
      return false;
    case Kind::iterator: {
      Sequence& sequence = *std::get<Iterator>(container.data);
      while (sequence.next < sequence.values.size()) {
        if (are_equal(runtime, sequence.values[sequence.next++], item)) return true;
      }
      return false;
    }
    default:
      runtime.fail_type("'in' is not defined for {}", type_name(container));
  }
}

namespace {

[[noreturn]] void fail_operands(Runtime& runtime, std::string_view symbol, const Value& a, const Value& b) {
  require_defined(runtime, a);
  require_defined(runtime, b);
  runtime.fail_type("'{}' is not defined between {} and {}", symbol, type_name(a), type_name(b));
}

[[noreturn]] void fail_overflow(Runtime& runtime) { runtime.fail_type("an integer does not fit 64 bits"); }

Value add(Runtime& runtime, const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) {
    int64_t sum = 0;
    if (__builtin_add_overflow(a.integer(), b.integer(), &sum)) fail_overflow(runtime);
    return integer(sum);
  }
  if (a.is_number() && b.is_number()) return real(a.real() + b.real());
  if (a.is(Kind::text) && b.is(Kind::text)) {
    runtime.charge_bytes(a.text().size() + b.text().size());
    return runtime.text(a.text() + b.text());
  }
  if (a.is_sequence() && a.kind() == b.kind()) {
    runtime.charge_bytes((a.items().size() + b.items().size()) * sizeof(Value));
    std::vector<Value> joined = a.items();
    joined.insert(joined.end(), b.items().begin(), b.items().end());
    return a.is(Kind::list) ? runtime.list(std::move(joined)) : runtime.tuple(std::move(joined));
  }
  fail_operands(runtime, "+", a, b);
}

Value subtract(Runtime& runtime, const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) {
    int64_t difference = 0;
    if (__builtin_sub_overflow(a.integer(), b.integer(), &difference)) fail_overflow(runtime);
    return integer(difference);
  }
  if (a.is_number() && b.is_number()) return real(a.real() - b.real());
  fail_operands(runtime, "-", a, b);
}

/// Text, list or tuple `count` times.
Value repeat(Runtime& runtime, const Value& value, int64_t count) {
  const size_t size = value.is(Kind::text) ? value.text().size() : value.items().size() * sizeof(Value);
  size_t total = 0;
  count = std::max<int64_t>(count, 0);
  if (__builtin_mul_overflow(size, static_cast<size_t>(count), &total)) total = SIZE_MAX;
  runtime.charge_bytes(total);
  if (size == 0) count = 0;
  if (value.is(Kind::text)) {
    std::string text;
    text.reserve(total);
    for (int64_t i = 0; i < count; ++i) text += value.text();
    return runtime.text(std::move(text));
  }
  std::vector<Value> items;
  for (int64_t i = 0; i < count; ++i) items.insert(items.end(), value.items().begin(), value.items().end());
  return value.is(Kind::list) ? runtime.list(std::move(items)) : runtime.tuple(std::move(items));
}

Value multiply(Runtime& runtime, const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) {
    int64_t product = 0;
    if (__builtin_mul_overflow(a.integer(), b.integer(), &product)) fail_overflow(runtime);
    return integer(product);
  }
  if (a.is_number() && b.is_number()) return real(a.real() * b.real());
  if ((a.is(Kind::text) || a.is_sequence()) && b.is_integral()) return repeat(runtime, a, b.integer());
  if ((b.is(Kind::text) || b.is_sequence()) && a.is_integral()) return repeat(runtime, b, a.integer());
  fail_operands(runtime, "*", a, b);
}

double floor_modulo(double a, double b) {
  const double remainder = std::fmod(a, b);
  return remainder != 0 && (remainder < 0) != (b < 0) ? remainder + b : remainder;
}

Value divide(Runtime& runtime, Operator op, const Value& a, const Value& b) {
  const std::string_view symbol = op == Operator::divide ? "/" : op == Operator::modulo ? "%" : "//";
  if (op == Operator::modulo && a.is(Kind::text)) return runtime.text(format_percent(runtime, a.text(), b));
  if (!a.is_number() || !b.is_number()) fail_operands(runtime, symbol, a, b);
  if (b.real() == 0) runtime.fail_type("division by zero");
  if (op == Operator::divide) return real(a.real() / b.real());
  if (a.is_integral() && b.is_integral()) {
    const int64_t x = a.integer(), y = b.integer();
    if (y == -1) return op == Operator::modulo ? integer(0) : negate(runtime, integer(x));
    const bool rounds_up = x % y != 0 && (x < 0) != (y < 0);
    if (op == Operator::modulo) return integer(x % y + (rounds_up ? y : 0));
    return integer(x / y - (rounds_up ? 1 : 0));
  }
  const double modulo = floor_modulo(a.real(), b.real());
  return real(op == Operator::modulo ? modulo : std::round((a.real() - modulo) / b.real()));
}

Value power(Runtime& runtime, const Value& a, const Value& b) {
  if (!a.is_number() || !b.is_number()) fail_operands(runtime, "**", a, b);
  if (!a.is_integral() || !b.is_integral() || b.integer() < 0) {
    if (a.real() == 0 && b.real() < 0) runtime.fail_type("division by zero");
    const double result = std::pow(a.real(), b.real());
    if (std::isnan(result) && a.real() < 0) runtime.fail_type("complex numbers are not supported");
    return real(result);
  }
  int64_t result = 1, base = a.integer();
  for (int64_t exponent = b.integer(); exponent > 0;) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) fail_overflow(runtime);
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) fail_overflow(runtime);
  }
  return integer(result);
}

}  // namespace

Value negate(Runtime& runtime, const Value& value) {
  if (value.is(Kind::real)) return real(-value.real());
  if (value.is_integral()) return subtract(runtime, integer(0), value);
  require_defined(runtime, value);
  runtime.fail_type("'-' is not defined for {}", type_name(value));
}

Value apply(Runtime& runtime, Operator op, const Value& a, const Value& b) {
  switch (op) {
    case Operator::add:
      return add(runtime, a, b);
    case Operator::subtract:
      return subtract(runtime, a, b);
    case Operator::multiply:
      return multiply(runtime, a, b);
    case Operator::divide:
    case Operator::floor_divide:
    case Operator::modulo:
      return divide(runtime, op, a, b);
    case Operator::power:
      return power(runtime, a, b);
    case Operator::equal:
      return boolean(are_equal(runtime, a, b));
    case Operator::not_equal:
      return boolean(!are_equal(runtime, a, b));
    case Operator::in:
      return boolean(contains(runtime, b, a));
    case Operator::not_in:
      return boolean(!contains(runtime, b, a));
    case Operator::less:
      return boolean(order_of(runtime, a, b, "<").value_or(1) < 0);
    case Operator::less_equal:
      return boolean(order_of(runtime, a, b, "<=").value_or(1) <= 0);
    case Operator::greater:
      return boolean(order_of(runtime, a, b, ">").value_or(-1) > 0);
    case Operator::greater_equal:
      return boolean(order_of(runtime, a, b, ">=").value_or(-1) >= 0);
  }
  return none();
}

}  // namespace nibble::jinja
