// Making values under a budget, and matching arguments to parameters.
#include "tokenizer/jinja_runtime.h"

#include "tokenizer/jinja_operators.h"

namespace nibble::jinja {

Value undefined(std::string_view name) { return {Undefined{std::make_shared<const std::string>(name)}}; }

std::string_view type_name(const Value& value) {
  static constexpr std::string_view kNames[] = {"Undefined", "NoneType", "bool",  "int",  "float",
                                                "str",       "list",     "tuple", "dict", "iterator",
                                                "Namespace", "function", "loop"};
  return kNames[static_cast<size_t>(value.kind())];
}

void Runtime::charge_steps(int64_t count) {
  if (__builtin_add_overflow(steps_, count, &steps_) || steps_ > limits_.steps) {
    fail_type("the template does too much work (more than {} steps)", limits_.steps);
  }
}

void Runtime::charge_bytes(size_t count) {
  if (count > static_cast<size_t>(limits_.bytes) || (bytes_ += static_cast<int64_t>(count)) > limits_.bytes) {
    fail_type("the template makes too much text (more than {} bytes)", limits_.bytes);
  }
}

Value Runtime::text(std::string value) {
  charge_bytes(value.size() + sizeof(std::string));
  return {std::make_shared<const std::string>(std::move(value))};
}

namespace {

int depth_of(const Value& value) {
  switch (value.kind()) {
    case Kind::list:
      return std::get<List>(value.data).items->depth;
    case Kind::tuple:
      return std::get<Tuple>(value.data).items->depth;
    case Kind::dict:
      return std::get<Dict>(value.data).entries->depth;
    case Kind::iterator:
      return std::get<Iterator>(value.data)->depth;
    case Kind::callable:
      return std::get<Callable>(value.data)->depth;
    default:
      return 0;
  }
}

void check_depth(const Runtime& runtime, int depth) {
  if (depth > kMaxValueDepth) runtime.fail_type("values are nested deeper than {}", kMaxValueDepth);
}

}  // namespace

std::shared_ptr<const Items> Runtime::items(std::vector<Value> values) {
  charge_bytes(values.size() * sizeof(Value) + sizeof(Items));
  auto made = std::make_shared<Items>();
  made->values = std::move(values);
  for (const Value& value : made->values) made->depth = std::max(made->depth, depth_of(value) + 1);
  check_depth(*this, made->depth);
  return made;
}

Value Runtime::list(std::vector<Value> values) { return {List{items(std::move(values))}}; }

Value Runtime::tuple(std::vector<Value> values) { return {Tuple{items(std::move(values))}}; }

Value Runtime::dict(std::vector<std::pair<Value, Value>> values) {
  charge_bytes(values.size() * 2 * sizeof(Value) + sizeof(Entries));
  auto made = std::make_shared<Entries>();
  made->values = std::move(values);
  for (const auto& [key, value] : made->values) {
    made->depth = std::max({made->depth, depth_of(key) + 1, depth_of(value) + 1});
  }
  check_depth(*this, made->depth);
  return {Dict{std::move(made)}};
}

Value Runtime::iterator(std::vector<Value> values) {
  charge_bytes(values.size() * sizeof(Value) + sizeof(Sequence));
  auto made = std::make_shared<Sequence>();
  made->values = std::move(values);
  for (const Value& value : made->values) made->depth = std::max(made->depth, depth_of(value) + 1);
  check_depth(*this, made->depth);
  return {std::move(made)};
}

Value Runtime::space(std::vector<std::pair<std::string, Value>> attributes) {
  charge_bytes(sizeof(Attributes) + attributes.size() * (sizeof(std::string) + sizeof(Value)));
  auto made = std::make_shared<Attributes>();
  made->values = std::move(attributes);
  namespaces_.push_back(made);
  return {std::move(made)};
}

Value Runtime::function(std::string name, const Value& self, std::function<Value(Runtime&, Arguments&)> call) {
  charge_bytes(sizeof(Function) + name.size());
  const int depth = depth_of(self) + 1;
  check_depth(*this, depth);
  return {std::make_shared<const Function>(Function{std::move(name), std::move(call), depth})};
}

void Runtime::release_namespaces() {
  for (const Namespace& space : namespaces_) space->values.clear();
  namespaces_.clear();
}

Value Runtime::from_json(const Json& json) {
  switch (json.type()) {
    case Json::value_t::boolean:
      return boolean(json.get<bool>());
    case Json::value_t::number_integer:
      return integer(json.get<int64_t>());
    case Json::value_t::number_unsigned: {
      const auto wide = json.get<uint64_t>();
      return wide <= INT64_MAX ? integer(static_cast<int64_t>(wide)) : real(static_cast<double>(wide));
    }
    case Json::value_t::number_float:
      return real(json.get<double>());
    case Json::value_t::string:
      return text(json.get_ref<const std::string&>());
    case Json::value_t::array: {
      std::vector<Value> values;
      values.reserve(json.size());
      for (const Json& item : json) values.push_back(from_json(item));
      return list(std::move(values));
    }
    case Json::value_t::object: {
      std::vector<std::pair<Value, Value>> values;
      values.reserve(json.size());
      for (const auto& [key, item] : json.items()) values.emplace_back(text(key), from_json(item));
      return dict(std::move(values));
    }
    default:
      return none();
  }
}

const Builtin* find_builtin(std::span<const Builtin> table, std::string_view name) {
  for (const Builtin& builtin : table) {
    if (builtin.name == name) return &builtin;
  }
  return nullptr;
}

Value call_builtin(Runtime& runtime, const Builtin& builtin, const Value& self, Arguments& arguments) {
  const auto charge = [&](const Value& value) {
    value.is(Kind::text) ? runtime.charge_scan(value.text()) : runtime.charge_steps(1);
  };
  charge(self);
  for (const Value& value : arguments.positional) charge(value);
  for (const auto& [name, value] : arguments.keywords) charge(value);
  if (builtin.call_variadic != nullptr) return builtin.call_variadic(runtime, self, arguments);
  size_t parameters = 0;
  while (parameters < builtin.parameters.size() && !builtin.parameters[parameters].empty()) ++parameters;
  if (arguments.positional.size() > parameters) {
    runtime.fail_type("{}() takes at most {} arguments, {} given", builtin.name, parameters,
                      arguments.positional.size());
  }
  Bound bound{};
  for (size_t i = 0; i < arguments.positional.size(); ++i) bound[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.keywords) {
    size_t i = 0;
    while (i < parameters && builtin.parameters[i] != name) ++i;
    if (i == parameters) runtime.fail_type("{}() has no argument '{}'", builtin.name, name);
    if (bound[i] != nullptr) runtime.fail_type("{}() got argument '{}' twice", builtin.name, name);
    bound[i] = &value;
  }
  for (size_t i = 0; i < builtin.required; ++i) {
    if (bound[i] == nullptr) runtime.fail_type("{}() misses its argument '{}'", builtin.name, builtin.parameters[i]);
  }
  return builtin.call(runtime, self, bound);
}

std::string_view text_argument(Runtime& runtime, const Value* value, std::string_view what) {
  if (value == nullptr || !value->is(Kind::text)) {
    runtime.fail_type("{}: expected text, got {}", what, value == nullptr ? "nothing" : type_name(*value));
  }
  return value->text();
}

int64_t integer_argument(Runtime& runtime, const Value* value, int64_t absent, std::string_view what) {
  if (value == nullptr) return absent;
  if (!value->is_integral()) runtime.fail_type("{}: expected an integer, got {}", what, type_name(*value));
  return value->integer();
}

bool flag_argument(Runtime& runtime, const Value* value, bool absent) {
  return value == nullptr ? absent : is_true(runtime, *value);
}

}  // namespace nibble::jinja
