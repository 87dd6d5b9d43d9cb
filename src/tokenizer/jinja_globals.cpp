// The functions that every chat template may call.
#include <ctime>

#include "tokenizer/jinja_operators.h"

namespace nibble::jinja {
namespace {

Value range(Runtime& runtime, Arguments& arguments) {
  const auto& given = arguments.positional;
  if (given.empty() || given.size() > 3 || !arguments.keywords.empty())
    runtime.fail_type("range() takes 1 to 3 integers");
  const int64_t start = given.size() > 1 ? integer_argument(runtime, &given[0], 0, "range") : 0;
  const int64_t stop = integer_argument(runtime, &given[given.size() > 1 ? 1 : 0], 0, "range");
  const int64_t step = given.size() > 2 ? integer_argument(runtime, &given[2], 1, "range") : 1;
  if (step == 0) runtime.fail_type("range() step must not be zero");
  std::vector<Value> values;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (static_cast<int64_t>(values.size()) == kMaxRange) runtime.fail_type("range() is longer than {}", kMaxRange);
    values.push_back(integer(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return runtime.list(std::move(values));
}

/// dict(mapping or pairs, key=value...).
std::vector<std::pair<Value, Value>> entries_of(Runtime& runtime, Arguments& arguments) {
  std::vector<std::pair<Value, Value>> entries;
  const auto set = [&](const Value& key, const Value& value) {
    runtime.charge_steps(1 + static_cast<int64_t>(entries.size() / 16));
    for (auto& entry : entries) {
      if (are_equal(runtime, entry.first, key)) {
        entry.second = value;
        return;
      }
    }
    entries.emplace_back(key, value);
  };
  if (arguments.positional.size() > 1) runtime.fail_type("dict() and namespace() take at most one positional argument");
  if (!arguments.positional.empty()) {
    const Value& source = arguments.positional[0];
    if (source.is(Kind::dict)) {
      entries = source.entries();
    } else {
      for (const Value& item : iterate(runtime, source)) {
        const std::vector<Value> pair = iterate(runtime, item);
        if (pair.size() != 2) runtime.fail_type("dict(): expected pairs, got {} values", pair.size());
        set(pair[0], pair[1]);
      }
    }
  }
  for (const auto& [name, value] : arguments.keywords) set(runtime.text(name), value);
  return entries;
}

Value make_dict(Runtime& runtime, Arguments& arguments) { return runtime.dict(entries_of(runtime, arguments)); }

Value make_namespace(Runtime& runtime, Arguments& arguments) {
  std::vector<std::pair<std::string, Value>> attributes;
  for (auto& [key, value] : entries_of(runtime, arguments)) {
    const std::string_view name = text_argument(runtime, &key, "namespace");
    if (name.starts_with('_')) runtime.fail_type("a namespace attribute may not begin with '_': {}", name);
    attributes.emplace_back(name, std::move(value));
  }
  return runtime.space(std::move(attributes));
}

Value raise_exception(Runtime& runtime, Arguments& arguments) {
  if (arguments.positional.size() != 1) runtime.fail_type("raise_exception() takes one message");
  runtime.fail_type("{}", to_text(runtime, arguments.positional[0]));
}

Value strftime_now(Runtime& runtime, Arguments& arguments) {
  if (arguments.positional.size() != 1) runtime.fail_type("strftime_now() takes one format");
  const std::string form(text_argument(runtime, &arguments.positional[0], "strftime_now"));
  if (form.empty()) return runtime.text("");
  if (form.size() > 1000) runtime.fail_type("strftime_now(): a format of {} bytes", form.size());
  std::string out(form.size() * 64 + 64, '\0');
  runtime.charge_bytes(out.size());
  runtime.charge_steps(100 + 2 * static_cast<int64_t>(form.size()));
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  out.resize(std::strftime(out.data(), out.size(), form.c_str(), &local));
  return runtime.text(std::move(out));
}

/// joiner(): nothing at the first call, then the separator.
Value make_joiner(Runtime& runtime, Arguments& arguments) {
  const Value separator = arguments.positional.empty() ? runtime.text(", ") : arguments.positional[0];
  return runtime.function("joiner", separator,
                          [separator, used = std::make_shared<bool>(false)](Runtime& inner, Arguments&) {
                            if (*used) return separator;
                            *used = true;
                            return inner.text("");
                          });
}

constexpr std::pair<std::string_view, Value (*)(Runtime&, Arguments&)> kGlobals[] = {
    {"range", range},
    {"dict", make_dict},
    {"namespace", make_namespace},
    {"raise_exception", raise_exception},
    {"strftime_now", strftime_now},
    {"joiner", make_joiner},
};

}  // namespace

Value find_global(Runtime& runtime, std::string_view name) {
  for (const auto& [known, function] : kGlobals) {
    if (known == name) return runtime.function(std::string(name), none(), function);
  }
  return undefined(fmt::format("'{}'", name.substr(0, 80)));
}

}  // namespace nibble::jinja
