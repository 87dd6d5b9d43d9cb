// The tests behind `is`.
#include "tokenizer/jinja_operators.h"
#include "tokenizer/python_text.h"

namespace nibble::jinja {
namespace {

template <Kind... kKinds>
Value is_kind(Runtime&, const Value& self, const Bound&) {
  return boolean((self.is(kKinds) || ...));
}

template <Operator kOperator>
Value compares(Runtime& runtime, const Value& self, const Bound& arguments) {
  return apply(runtime, kOperator, self, *arguments[0]);
}

Value is_defined(Runtime&, const Value& self, const Bound&) { return boolean(!self.is(Kind::undefined)); }

template <bool kWanted>
Value is_exactly(Runtime&, const Value& self, const Bound&) {
  return boolean(self.is(Kind::boolean) && (self.integer() != 0) == kWanted);
}

template <int64_t kRemainder>
Value has_parity(Runtime& runtime, const Value& self, const Bound&) {
  const Value remainder = apply(runtime, Operator::modulo, self, integer(2));
  return boolean(are_equal(runtime, remainder, integer(kRemainder)));
}

Value is_divisible(Runtime& runtime, const Value& self, const Bound& arguments) {
  return boolean(are_equal(runtime, apply(runtime, Operator::modulo, self, *arguments[0]), integer(0)));
}

Value is_same(Runtime& runtime, const Value& self, const Bound& arguments) {
  return boolean(self.kind() == arguments[0]->kind() && are_equal(runtime, self, *arguments[0]));
}

/// str.isupper() and str.islower() of the value as text.
template <bool kUpper>
Value has_case(Runtime& runtime, const Value& self, const Bound&) {
  const Value text = runtime.text(to_text(runtime, self));
  Arguments none;
  return call_builtin(runtime, *find_method(text, kUpper ? "isupper" : "islower"), text, none);
}

template <const Builtin* (*kFind)(std::string_view)>
Value is_known(Runtime& runtime, const Value& self, const Bound&) {
  return boolean(kFind(text_argument(runtime, &self, "filter or test name")) != nullptr);
}

constexpr auto kIterable =
    is_kind<Kind::undefined, Kind::text, Kind::list, Kind::tuple, Kind::dict, Kind::iterator, Kind::loop>;
constexpr auto kSequence = is_kind<Kind::undefined, Kind::text, Kind::list, Kind::tuple, Kind::dict>;

constexpr Builtin kTests[] = {
    {"defined", {}, 0, is_defined, nullptr},
    {"undefined", {}, 0, is_kind<Kind::undefined>, nullptr},
    {"none", {}, 0, is_kind<Kind::none>, nullptr},
    {"boolean", {}, 0, is_kind<Kind::boolean>, nullptr},
    {"true", {}, 0, is_exactly<true>, nullptr},
    {"false", {}, 0, is_exactly<false>, nullptr},
    {"integer", {}, 0, is_kind<Kind::integer>, nullptr},
    {"float", {}, 0, is_kind<Kind::real>, nullptr},
    {"number", {}, 0, is_kind<Kind::boolean, Kind::integer, Kind::real>, nullptr},
    {"string", {}, 0, is_kind<Kind::text>, nullptr},
    {"mapping", {}, 0, is_kind<Kind::dict>, nullptr},
    {"iterable", {}, 0, kIterable, nullptr},
    {"sequence", {}, 0, kSequence, nullptr},
    {"callable", {}, 0, is_kind<Kind::callable>, nullptr},
    {"odd", {}, 0, has_parity<1>, nullptr},
    {"even", {}, 0, has_parity<0>, nullptr},
    {"divisibleby", {"num"}, 1, is_divisible, nullptr},
    {"sameas", {"other"}, 1, is_same, nullptr},
    {"upper", {}, 0, has_case<true>, nullptr},
    {"lower", {}, 0, has_case<false>, nullptr},
    {"filter", {}, 0, is_known<find_filter>, nullptr},
    {"test", {}, 0, is_known<find_test>, nullptr},
    {"in", {"seq"}, 1, compares<Operator::in>, nullptr},
    {"eq", {"other"}, 1, compares<Operator::equal>, nullptr},
    {"equalto", {"other"}, 1, compares<Operator::equal>, nullptr},
    {"==", {"other"}, 1, compares<Operator::equal>, nullptr},
    {"ne", {"other"}, 1, compares<Operator::not_equal>, nullptr},
    {"!=", {"other"}, 1, compares<Operator::not_equal>, nullptr},
    {"lt", {"other"}, 1, compares<Operator::less>, nullptr},
    {"lessthan", {"other"}, 1, compares<Operator::less>, nullptr},
    {"<", {"other"}, 1, compares<Operator::less>, nullptr},
    {"le", {"other"}, 1, compares<Operator::less_equal>, nullptr},
    {"<=", {"other"}, 1, compares<Operator::less_equal>, nullptr},
    {"gt", {"other"}, 1, compares<Operator::greater>, nullptr},
    {"greaterthan", {"other"}, 1, compares<Operator::greater>, nullptr},
    {">", {"other"}, 1, compares<Operator::greater>, nullptr},
    {"ge", {"other"}, 1, compares<Operator::greater_equal>, nullptr},
    {">=", {"other"}, 1, compares<Operator::greater_equal>, nullptr},
};

}  // namespace

const Builtin* find_test(std::string_view name) { return find_builtin(kTests, name); }

}  // namespace nibble::jinja
