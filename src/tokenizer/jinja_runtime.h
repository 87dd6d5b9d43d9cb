// What filters, tests and methods see of a running template: its limits, the current line, making values.
#pragma once

#include <array>
#include <span>

#include "tokenizer/jinja_value.h"

namespace nibble::jinja {

/// Accounts for the work of one rendering. Not thread-safe.
class Runtime {
 public:
  explicit Runtime(const Limits& limits) : limits_(limits) {}

  /// Throws invalid_argument when a limit is passed.
  void charge_steps(int64_t count);
  void charge_bytes(size_t count);
  /// Steps for going through `text` character by character.
  void charge_scan(std::string_view text) { charge_steps(1 + static_cast<int64_t>(text.size() / 4)); }

  /// Throws Error{code} with the current line in front.
  template <typename... Args>
  [[noreturn]] void fail_here(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) const {
    fail(code, "chat template, line {}: {}", line, fmt::format(format, std::forward<Args>(args)...));
  }
  template <typename... Args>
  [[noreturn]] void fail_type(fmt::format_string<Args...> format, Args&&... args) const {
    fail_here(ErrorCode::invalid_argument, format, std::forward<Args>(args)...);
  }

  Value text(std::string value);
  Value list(std::vector<Value> values);
  Value tuple(std::vector<Value> values);
  Value dict(std::vector<std::pair<Value, Value>> values);
  Value iterator(std::vector<Value> values);
  Value space(std::vector<std::pair<std::string, Value>> attributes);
  /// `self` is what the function holds on to.
  Value function(std::string name, const Value& self, std::function<Value(Runtime&, Arguments&)> call);
  /// A JSON value as Python's json.loads makes it.
  Value from_json(const Json& json);

  /// Forgets what namespaces hold: they are the only values that can hold each other in a circle.
  void release_namespaces();

  int line = 0;

 private:
  std::shared_ptr<const Items> items(std::vector<Value> values);

  Limits limits_;
  int64_t steps_ = 0;
  int64_t bytes_ = 0;
  std::vector<Namespace> namespaces_;
};

/// Clears namespaces at the end of a rendering, however it ends.
class RuntimeGuard {
 public:
  explicit RuntimeGuard(Runtime& runtime) : runtime_(runtime) {}
  ~RuntimeGuard() { runtime_.release_namespaces(); }
  RuntimeGuard(const RuntimeGuard&) = delete;
  RuntimeGuard& operator=(const RuntimeGuard&) = delete;

 private:
  Runtime& runtime_;
};

/// Arguments matched to parameters; absent ones are null.
using Bound = std::array<const Value*, 6>;

/// A filter, a test or a method: `self` is what stands left of it.
struct Builtin {
  std::string_view name;
  std::array<std::string_view, 6> parameters;
  size_t required;
  Value (*call)(Runtime&, const Value& self, const Bound& arguments);
  Value (*call_variadic)(Runtime&, const Value& self, Arguments& arguments);  // instead of `call`
};

/// Matches arguments to parameters and calls.
Value call_builtin(Runtime& runtime, const Builtin& builtin, const Value& self, Arguments& arguments);
const Builtin* find_builtin(std::span<const Builtin> table, std::string_view name);

const Builtin* find_filter(std::string_view name);
const Builtin* find_test(std::string_view name);
/// Methods of text, lists, tuples, dicts, loops; null if the type has no such method.
const Builtin* find_method(const Value& self, std::string_view name);
const Builtin* find_container_method(const Value& self, std::string_view name);
/// The filters that take and give lists; find_filter looks there, too.
const Builtin* find_list_filter(std::string_view name);
/// range, namespace, dict, raise_exception, strftime_now, cycler, joiner; undefined for another name.
Value find_global(Runtime& runtime, std::string_view name);

/// Typed arguments with Python's errors.
std::string_view text_argument(Runtime& runtime, const Value* value, std::string_view what);
int64_t integer_argument(Runtime& runtime, const Value* value, int64_t absent, std::string_view what);
bool flag_argument(Runtime& runtime, const Value* value, bool absent);

}  // namespace nibble::jinja
