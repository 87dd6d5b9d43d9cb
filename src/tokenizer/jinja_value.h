// The values a chat template computes with: Python's, immutable except for namespaces and iterators.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/json.h"

namespace nibble::jinja {

class Runtime;
struct Value;
struct Arguments;

/// `name` says what was looked up, for the error when it is used.
struct Undefined {
  std::shared_ptr<const std::string> name;
};
struct None {};
using Text = std::shared_ptr<const std::string>;

/// `depth` bounds nesting, so that printing and destroying a value cannot exhaust the stack.
struct Items {
  std::vector<Value> values;
  int depth = 1;
};
struct List {
  std::shared_ptr<const Items> items;
};
struct Tuple {
  std::shared_ptr<const Items> items;
};
struct Entries {
  std::vector<std::pair<Value, Value>> values;  // in order of insertion
  int depth = 1;
};
struct Dict {
  std::shared_ptr<const Entries> entries;
};
/// A Python iterator: always true, and empty after it was consumed.
struct Sequence {
  std::vector<Value> values;
  size_t next = 0;
  int depth = 1;
};
using Iterator = std::shared_ptr<Sequence>;
struct Attributes {
  std::vector<std::pair<std::string, Value>> values;
};
using Namespace = std::shared_ptr<Attributes>;
struct Function {
  std::string name;
  std::function<Value(Runtime&, Arguments&)> call;
  int depth = 1;
};
using Callable = std::shared_ptr<const Function>;
struct LoopState;
using Loop = std::shared_ptr<LoopState>;

enum class Kind : uint8_t {
  undefined,
  none,
  boolean,
  integer,
  real,
  text,
  list,
  tuple,
  dict,
  iterator,
  space,
  callable,
  loop
};

struct Value {
  std::variant<Undefined, None, bool, int64_t, double, Text, List, Tuple, Dict, Iterator, Namespace, Callable, Loop>
      data;

  Kind kind() const { return static_cast<Kind>(data.index()); }
  bool is(Kind kind) const { return this->kind() == kind; }
  bool is_number() const { return is(Kind::boolean) || is(Kind::integer) || is(Kind::real); }
  bool is_integral() const { return is(Kind::boolean) || is(Kind::integer); }
  bool is_sequence() const { return is(Kind::list) || is(Kind::tuple); }

  /// Each requires that kind().
  const std::string& text() const { return *std::get<Text>(data); }
  const std::vector<Value>& items() const {
    return is(Kind::list) ? std::get<List>(data).items->values : std::get<Tuple>(data).items->values;
  }
  const std::vector<std::pair<Value, Value>>& entries() const { return std::get<Dict>(data).entries->values; }
  /// Of an integer or boolean.
  int64_t integer() const { return is(Kind::boolean) ? std::get<bool>(data) : std::get<int64_t>(data); }
  /// Of any number.
  double real() const { return is(Kind::real) ? std::get<double>(data) : static_cast<double>(integer()); }
};

inline Value none() { return {None{}}; }
inline Value boolean(bool value) { return {value}; }
inline Value integer(int64_t value) { return {value}; }
inline Value real(double value) { return {value}; }
Value undefined(std::string_view name);

/// The arguments of a call.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keywords;
};

/// How much work one rendering may do; templates come from strangers.
struct Limits {
  int64_t steps = 50'000'000;          // evaluated nodes and compared or scanned items
  int64_t bytes = int64_t{512} << 20;  // of all values and output made, also those freed again
};

constexpr int kMaxValueDepth = 250;
constexpr int64_t kMaxRange = 100'000;  // as jinja2's sandbox

/// The name of a value's type as Python has it.
std::string_view type_name(const Value& value);

}  // namespace nibble::jinja
