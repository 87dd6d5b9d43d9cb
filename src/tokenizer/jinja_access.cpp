// Look-ups: attributes, items, slices, iteration, calls.
#include <algorithm>

#include "tokenizer/jinja_loop.h"
#include "tokenizer/jinja_operators.h"
#include "tokenizer/python_text.h"

namespace nibble::jinja {
namespace {

Value missing(std::string_view object, std::string_view name) {
  return undefined(fmt::format("'{}' of {}", name.substr(0, 80), object));
}

Value loop_attribute(LoopState& loop, std::string_view name) {
  const auto or_undefined = [&](const std::optional<Value>& value) { return value ? *value : missing("loop", name); };
  if (name == "index") return integer(loop.index0 + 1);
  if (name == "index0") return integer(loop.index0);
  if (name == "first") return boolean(loop.index0 == 0);
  if (name == "last") return boolean(!loop.peek());
  if (name == "length") return integer(loop.length());
  if (name == "revindex") return integer(loop.length() - loop.index0);
  if (name == "revindex0") return integer(loop.length() - loop.index0 - 1);
  if (name == "previtem") return or_undefined(loop.previous);
  if (name == "nextitem") return or_undefined(loop.peek());
  if (name == "depth") return integer(1);  // counts recursive loops only
  if (name == "depth0") return integer(0);
  return missing("loop", name);
}

/// Attributes and methods only.
std::optional<Value> find_attribute(Runtime& runtime, const Value& object, std::string_view name) {
  if (object.is(Kind::space)) {
    const auto& attributes = std::get<Namespace>(object.data)->values;
    runtime.charge_steps(static_cast<int64_t>(attributes.size() / 16));
    for (const auto& [key, value] : attributes) {
      if (key == name) return value;
    }
    return missing("namespace", name);
  }
  if (const Builtin* method = find_method(object, name)) {
    return runtime.function(std::string(name), object, [method, object](Runtime& inner, Arguments& arguments) {
      return call_builtin(inner, *method, object, arguments);
    });
  }
  if (object.is(Kind::loop)) return loop_attribute(*std::get<Loop>(object.data), name);
  return std::nullopt;
}

std::optional<Value> find_index(Runtime& runtime, const Value& object, const Value& key) {
  if (!key.is_integral()) return std::nullopt;
  const bool is_text = object.is(Kind::text);
  if (!is_text && !object.is_sequence()) return std::nullopt;
  if (is_text) runtime.charge_scan(object.text());
  const int64_t size = is_text ? python_text::length(object.text()) : static_cast<int64_t>(object.items().size());
  const int64_t index = key.integer() < 0 ? key.integer() + size : key.integer();
  if (index < 0 || index >= size) return std::nullopt;
  if (!is_text) return object.items()[static_cast<size_t>(index)];
  return runtime.text(std::string(python_text::slice(object.text(), index, index + 1)));
}

}  // namespace

const Value* find_key(Runtime& runtime, const Value& dict, const Value& key) {
  const auto& entries = dict.entries();
  runtime.charge_steps(1 + static_cast<int64_t>(entries.size() / 16));
  if (key.is(Kind::list) || key.is(Kind::dict)) runtime.fail_type("a {} cannot be a key", type_name(key));
  if (key.is(Kind::text)) {
    for (const auto& [name, value] : entries) {
      if (!name.is(Kind::text) || name.text().size() != key.text().size()) continue;
      runtime.charge_steps(static_cast<int64_t>(key.text().size() / 64));
      if (name.text() == key.text()) return &value;
    }
    return nullptr;
  }
  for (const auto& [name, value] : entries) {
    if (are_equal(runtime, name, key)) return &value;
  }
  return nullptr;
}

Value get_attribute(Runtime& runtime, const Value& object, std::string_view name) {
  require_defined(runtime, object);
  if (std::optional<Value> found = find_attribute(runtime, object, name)) return *std::move(found);
  if (object.is(Kind::dict)) {
    runtime.charge_steps(1 + static_cast<int64_t>(object.entries().size() / 16));
    for (const auto& [key, value] : object.entries()) {
      if (key.is(Kind::text) && key.text() == name) return value;
    }
  }
  return missing(type_name(object), name);
}

Value get_item(Runtime& runtime, const Value& object, const Value& key) {
  require_defined(runtime, object);
  if (key.is(Kind::list) || key.is(Kind::dict)) return missing(type_name(object), type_name(key));
  if (object.is(Kind::dict)) {
    if (const Value* found = find_key(runtime, object, key)) return *found;
  } else if (std::optional<Value> found = find_index(runtime, object, key)) {
    return *std::move(found);
  }
  if (key.is(Kind::text)) {
    if (std::optional<Value> found = find_attribute(runtime, object, key.text())) return *std::move(found);
    return missing(type_name(object), key.text());
  }
  return missing(type_name(object), to_text(runtime, key));
}

Value get_slice(Runtime& runtime, const Value& object, const Value* start, const Value* stop, const Value* step) {
  require_defined(runtime, object);
  if (!object.is(Kind::text) && !object.is_sequence()) return missing(type_name(object), "slice");
  const auto bound = [&](const Value* value) -> std::optional<int64_t> {
    if (value == nullptr || value->is(Kind::none)) return std::nullopt;
    return integer_argument(runtime, value, 0, "slice");
  };
  const std::u32string codes = object.is(Kind::text) ? python_text::decode(object.text()) : std::u32string();
  runtime.charge_bytes(codes.size() * sizeof(char32_t));
  const auto size = static_cast<int64_t>(object.is(Kind::text) ? codes.size() : object.items().size());
  const int64_t stride = std::clamp<int64_t>(bound(step).value_or(1), -INT32_MAX, INT32_MAX);
  if (stride == 0) runtime.fail_type("slice step cannot be zero");
  const auto clamp = [&](int64_t index) {
    if (index < 0) index += size;
    return stride > 0 ? std::clamp<int64_t>(index, 0, size) : std::clamp<int64_t>(index, -1, size - 1);
  };
  const auto first = bound(start), end = bound(stop);
  const int64_t from = first ? clamp(*first) : stride > 0 ? 0 : size - 1;
  const int64_t to = end ? clamp(*end) : stride > 0 ? size : -1;
  std::u32string text;
  std::vector<Value> items;
  for (int64_t i = from; stride > 0 ? i < to : i > to; i += stride) {
    runtime.charge_steps(1);
    if (object.is(Kind::text)) {
      text.push_back(codes[static_cast<size_t>(i)]);
    } else {
      items.push_back(object.items()[static_cast<size_t>(i)]);
    }
  }
  if (object.is(Kind::text)) return runtime.text(python_text::encode(text));
  return object.is(Kind::list) ? runtime.list(std::move(items)) : runtime.tuple(std::move(items));
}

std::vector<Value> iterate(Runtime& runtime, const Value& value) {
  std::vector<Value> items;
  switch (value.kind()) {
    case Kind::undefined:
      break;
    case Kind::list:
    case Kind::tuple:
      runtime.charge_bytes(value.items().size() * sizeof(Value));
      return value.items();
    case Kind::dict:
      runtime.charge_bytes(value.entries().size() * sizeof(Value));
      for (const auto& [key, item] : value.entries()) items.push_back(key);
      break;
    case Kind::text:
      for (const char32_t code : python_text::decode(value.text())) {
        items.push_back(runtime.text(python_text::encode(std::u32string_view(&code, 1))));
      }
      break;
    case Kind::iterator: {
      Sequence& sequence = *std::get<Iterator>(value.data);
      runtime.charge_bytes((sequence.values.size() - sequence.next) * sizeof(Value));
      items.assign(sequence.values.begin() + static_cast<ptrdiff_t>(sequence.next), sequence.values.end());
      sequence.next = sequence.values.size();
      break;
    }
    default:
      runtime.fail_type("{} cannot be iterated", type_name(value));
  }
  return items;
}

int64_t length_of(Runtime& runtime, const Value& value) {
  switch (value.kind()) {
    case Kind::undefined:
      return 0;
    case Kind::text:
      runtime.charge_scan(value.text());
      return python_text::length(value.text());
    case Kind::list:
    case Kind::tuple:
      return static_cast<int64_t>(value.items().size());
    case Kind::dict:
      return static_cast<int64_t>(value.entries().size());
    case Kind::loop:
      return std::get<Loop>(value.data)->length();
    default:
      runtime.fail_type("{} has no length", type_name(value));
  }
}

Value call(Runtime& runtime, const Value& callee, Arguments& arguments) {
  require_defined(runtime, callee);
  if (!callee.is(Kind::callable)) runtime.fail_type("{} cannot be called", type_name(callee));
  return std::get<Callable>(callee.data)->call(runtime, arguments);
}

}  // namespace nibble::jinja
