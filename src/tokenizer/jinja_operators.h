// Python's operators, conversions and look-ups on template values.
#pragma once

#include "tokenizer/jinja_runtime.h"

namespace nibble::jinja {

enum class Operator : uint8_t {
  add,
  subtract,
  multiply,
  divide,
  floor_divide,
  modulo,
  power,
  equal,
  not_equal,
  less,
  less_equal,
  greater,
  greater_equal,
  in,
  not_in,
};

/// Errors of all: invalid_argument for types that Python refuses and for undefined values in use.
bool is_true(Runtime& runtime, const Value& value);
bool are_equal(Runtime& runtime, const Value& a, const Value& b);
/// Negative, zero or positive; refuses what Python cannot order. NaN is unordered: nullopt.
std::optional<int> order_of(Runtime& runtime, const Value& a, const Value& b, std::string_view symbol);
bool contains(Runtime& runtime, const Value& container, const Value& item);
Value apply(Runtime& runtime, Operator op, const Value& a, const Value& b);
Value negate(Runtime& runtime, const Value& value);
/// Throws if `value` is undefined.
void require_defined(Runtime& runtime, const Value& value);

/// str(), repr() and json.dumps(ensure_ascii=False).
std::string to_text(Runtime& runtime, const Value& value);
void append_repr(Runtime& runtime, const Value& value, std::string& out);
struct JsonStyle {
  std::optional<std::string> indent;  // of one level; nullopt: one line
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool ensure_ascii = false;
  bool sort_keys = false;
};
std::string to_json(Runtime& runtime, const Value& value, const JsonStyle& style);
/// "%s and %d" % values.
std::string format_percent(Runtime& runtime, std::string_view format, const Value& values);

/// foo.name: attributes and methods first, then the key. foo[key]: the other way round.
Value get_attribute(Runtime& runtime, const Value& object, std::string_view name);
Value get_item(Runtime& runtime, const Value& object, const Value& key);
/// The entry of a dict, or null.
const Value* find_key(Runtime& runtime, const Value& dict, const Value& key);
/// object[start:stop:step]; null bounds are absent.
Value get_slice(Runtime& runtime, const Value& object, const Value* start, const Value* stop, const Value* step);
/// What a for loop visits. Consumes an iterator.
std::vector<Value> iterate(Runtime& runtime, const Value& value);
/// len(); refuses what has none.
int64_t length_of(Runtime& runtime, const Value& value);
Value call(Runtime& runtime, const Value& callee, Arguments& arguments);

}  // namespace nibble::jinja
