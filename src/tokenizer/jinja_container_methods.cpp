// Methods of Python's list, tuple and dict, and of the loop variable. What would change a value is refused, as in
// jinja2's immutable sandbox, which transformers uses.
#include <algorithm>

#include "tokenizer/jinja_loop.h"
#include "tokenizer/jinja_operators.h"

namespace nibble::jinja {
namespace {

Value index_of(Runtime& runtime, const Value& self, const Bound& arguments) {
  for (size_t i = 0; i < self.items().size(); ++i) {
    if (are_equal(runtime, self.items()[i], *arguments[0])) return integer(static_cast<int64_t>(i));
  }
  runtime.fail_type("index: the value is not in the {}", type_name(self));
}

Value count_items(Runtime& runtime, const Value& self, const Bound& arguments) {
  int64_t count = 0;
  for (const Value& item : self.items()) count += are_equal(runtime, item, *arguments[0]) ? 1 : 0;
  return integer(count);
}

Value copy(Runtime&, const Value& self, const Bound&) { return self; }

Value refuse_change(Runtime& runtime, const Value& self, Arguments&) {
  runtime.fail_type("a template may not change a {}: use a namespace and '+'", type_name(self));
}

Value get(Runtime& runtime, const Value& self, const Bound& arguments) {
  if (const Value* found = find_key(runtime, self, *arguments[0])) return *found;
  return arguments[1] != nullptr ? *arguments[1] : none();
}

Value items(Runtime& runtime, const Value& self, const Bound&) {
  std::vector<Value> pairs;
  for (const auto& [key, value] : self.entries()) pairs.push_back(runtime.tuple({key, value}));
  return runtime.list(std::move(pairs));
}

Value keys(Runtime& runtime, const Value& self, const Bound&) { return runtime.list(iterate(runtime, self)); }

Value values(Runtime& runtime, const Value& self, const Bound&) {
  std::vector<Value> values;
  for (const auto& [key, value] : self.entries()) values.push_back(value);
  return runtime.list(std::move(values));
}

Value cycle(Runtime& runtime, const Value& self, Arguments& arguments) {
  const LoopState& loop = *std::get<Loop>(self.data);
  if (arguments.positional.empty()) runtime.fail_type("loop.cycle() needs an argument");
  if (loop.index0 < 0) return none();
  return arguments.positional[static_cast<size_t>(loop.index0) % arguments.positional.size()];
}

Value changed(Runtime& runtime, const Value& self, Arguments& arguments) {
  LoopState& loop = *std::get<Loop>(self.data);
  if (!loop.pull) runtime.fail_type("loop.changed() after the loop");
  Value now = runtime.tuple(std::move(arguments.positional));
  if (loop.last_changed && are_equal(runtime, *loop.last_changed, now)) return boolean(false);
  loop.last_changed = std::move(now);
  return boolean(true);
}

constexpr Builtin kListMethods[] = {
    {"index", {"value"}, 1, index_of, nullptr},
    {"count", {"value"}, 1, count_items, nullptr},
    {"copy", {}, 0, copy, nullptr},
    {"append", {}, 0, nullptr, refuse_change},
    {"pop", {}, 0, nullptr, refuse_change},
    {"extend", {}, 0, nullptr, refuse_change},
    {"insert", {}, 0, nullptr, refuse_change},
    {"remove", {}, 0, nullptr, refuse_change},
    {"reverse", {}, 0, nullptr, refuse_change},
    {"sort", {}, 0, nullptr, refuse_change},
    {"clear", {}, 0, nullptr, refuse_change},
};
constexpr Builtin kTupleMethods[] = {
    {"index", {"value"}, 1, index_of, nullptr},
    {"count", {"value"}, 1, count_items, nullptr},
};
constexpr Builtin kDictMethods[] = {
    {"get", {"key", "default"}, 1, get, nullptr},
    {"items", {}, 0, items, nullptr},
    {"keys", {}, 0, keys, nullptr},
    {"values", {}, 0, values, nullptr},
    {"copy", {}, 0, copy, nullptr},
    {"update", {}, 0, nullptr, refuse_change},
    {"pop", {}, 0, nullptr, refuse_change},
    {"popitem", {}, 0, nullptr, refuse_change},
    {"setdefault", {}, 0, nullptr, refuse_change},
    {"clear", {}, 0, nullptr, refuse_change},
};
constexpr Builtin kLoopMethods[] = {
    {"cycle", {}, 0, nullptr, cycle},
    {"changed", {}, 0, nullptr, changed},
};

}  // namespace

const Builtin* find_container_method(const Value& self, std::string_view name) {
  switch (self.kind()) {
    case Kind::list:
      return find_builtin(kListMethods, name);
    case Kind::tuple:
      return find_builtin(kTupleMethods, name);
    case Kind::dict:
      return find_builtin(kDictMethods, name);
    case Kind::loop:
      return find_builtin(kLoopMethods, name);
    default:
      return nullptr;
  }
}

}  // namespace nibble::jinja
