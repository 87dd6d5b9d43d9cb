// Filters that take or give lists.
#include <algorithm>

#include "tokenizer/jinja_operators.h"
#include "tokenizer/python_text.h"

namespace nibble::jinja {
namespace {

/// "a.b.0" looks up a, then b, then item 0; an integer is one item.
Value look_up_path(Runtime& runtime, const Value& item, const Value& path, const Value* absent) {
  Value current = item;
  const auto step = [&](const Value& key) {
    current = get_item(runtime, current, key);
    if (current.is(Kind::undefined) && absent != nullptr) current = *absent;
  };
  if (!path.is(Kind::text)) {
    step(path);
    return current;
  }
  for (const std::string_view part : python_text::split(path.text(), ".", -1)) {
    const bool is_index = !part.empty() && part.size() < 10 && part.find_first_not_of("0123456789") == part.npos;
    step(is_index ? integer(std::stoll(std::string(part))) : runtime.text(std::string(part)));
  }
  return current;
}

Value lowered(Runtime& runtime, const Value& value) {
  return value.is(Kind::text) ? runtime.text(python_text::lower(value.text())) : value;
}

/// What sort, unique, min, max and groupby compare.
Value sort_key(Runtime& runtime, const Value& item, const Value* attribute, bool case_sensitive,
               const Value* absent = nullptr) {
  const bool has_path = attribute != nullptr && !attribute->is(Kind::none);
  const Value key = has_path ? look_up_path(runtime, item, *attribute, absent) : item;
  return case_sensitive ? key : lowered(runtime, key);
}

bool is_less(Runtime& runtime, const Value& a, const Value& b) { return order_of(runtime, a, b, "<").value_or(0) < 0; }

/// Python's sorted() with its keys; stable also in reverse.
void sort_pairs(Runtime& runtime, std::vector<std::pair<Value, Value>>& keyed, bool reverse) {
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return reverse ? is_less(runtime, b.first, a.first) : is_less(runtime, a.first, b.first);
  });
}

Value seconds(Runtime& runtime, const std::vector<std::pair<Value, Value>>& pairs) {
  std::vector<Value> values;
  for (const auto& pair : pairs) values.push_back(pair.second);
  return runtime.list(std::move(values));
}

Value sort(Runtime& runtime, const Value& self, const Bound& arguments) {
  const bool reverse = flag_argument(runtime, arguments[0], false), exact = flag_argument(runtime, arguments[1], false);
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : iterate(runtime, self)) {
    if (arguments[2] != nullptr && arguments[2]->is(Kind::text)) {  // several attributes
      std::vector<Value> keys;
      for (const std::string_view path : python_text::split(arguments[2]->text(), ",", -1)) {
        const Value name = runtime.text(std::string(path));
        keys.push_back(sort_key(runtime, item, &name, exact));
      }
      keyed.emplace_back(runtime.list(std::move(keys)), std::move(item));
    } else {
      keyed.emplace_back(sort_key(runtime, item, arguments[2], exact), std::move(item));
    }
  }
  sort_pairs(runtime, keyed, reverse);
  return seconds(runtime, keyed);
}

Value dictsort(Runtime& runtime, const Value& self, const Bound& arguments) {
  if (!self.is(Kind::dict)) runtime.fail_type("dictsort: expected a dict, got {}", type_name(self));
  const bool exact = flag_argument(runtime, arguments[0], false), reverse = flag_argument(runtime, arguments[2], false);
  const std::string_view by = arguments[1] != nullptr ? text_argument(runtime, arguments[1], "dictsort") : "key";
  if (by != "key" && by != "value") runtime.fail_type("dictsort: by '{}' is neither key nor value", by);
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, value] : self.entries()) {
    keyed.emplace_back(sort_key(runtime, by == "key" ? key : value, nullptr, exact), runtime.tuple({key, value}));
  }
  sort_pairs(runtime, keyed, reverse);
  return seconds(runtime, keyed);
}

Value unique(Runtime& runtime, const Value& self, const Bound& arguments) {
  std::vector<Value> seen, kept;
  for (Value& item : iterate(runtime, self)) {
    Value key = sort_key(runtime, item, arguments[1], flag_argument(runtime, arguments[0], false));
    if (std::any_of(seen.begin(), seen.end(), [&](const Value& other) { return are_equal(runtime, key, other); }))
      continue;
    seen.push_back(std::move(key));
    kept.push_back(std::move(item));
  }
  return runtime.iterator(std::move(kept));
}

template <bool kMaximum>
Value extreme(Runtime& runtime, const Value& self, const Bound& arguments) {
  const bool exact = flag_argument(runtime, arguments[0], false);
  std::optional<std::pair<Value, Value>> best;
  for (Value& item : iterate(runtime, self)) {
    Value key = sort_key(runtime, item, arguments[1], exact);
    const bool is_better =
        !best || (kMaximum ? is_less(runtime, best->first, key) : is_less(runtime, key, best->first));
    if (is_better) best.emplace(std::move(key), std::move(item));
  }
  return best ? best->second : undefined("the extreme of an empty sequence");
}

Value groupby(Runtime& runtime, const Value& self, const Bound& arguments) {
  const bool exact = flag_argument(runtime, arguments[2], false);
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : iterate(runtime, self)) {
    Value key = sort_key(runtime, item, arguments[0], exact, arguments[1]);
    keyed.emplace_back(std::move(key), std::move(item));
  }
  sort_pairs(runtime, keyed, false);
  std::vector<Value> groups;
  for (size_t begin = 0; begin < keyed.size();) {
    size_t end = begin;
    std::vector<Value> members;
    while (end < keyed.size() && are_equal(runtime, keyed[begin].first, keyed[end].first))
      members.push_back(keyed[end++].second);
    const Value name = sort_key(runtime, members[0], arguments[0], true, arguments[1]);
    groups.push_back(runtime.tuple({name, runtime.list(std::move(members))}));
    begin = std::max(end, begin + 1);
  }
  return runtime.list(std::move(groups));
}

Value sum(Runtime& runtime, const Value& self, const Bound& arguments) {
  Value total = arguments[1] != nullptr ? *arguments[1] : integer(0);
  for (const Value& item : iterate(runtime, self)) {
    total = apply(runtime, Operator::add, total, sort_key(runtime, item, arguments[0], true));
  }
  return total;
}

Value join(Runtime& runtime, const Value& self, const Bound& arguments) {
  const std::string separator = arguments[0] != nullptr ? to_text(runtime, *arguments[0]) : "";
  std::string out;
  bool is_first = true;
  for (const Value& item : iterate(runtime, self)) {
    if (!is_first) {
      runtime.charge_bytes(separator.size());
      out += separator;
    }
    is_first = false;
    out += to_text(runtime, sort_key(runtime, item, arguments[1], true));
  }
  return runtime.text(std::move(out));
}

Value first(Runtime& runtime, const Value& self, const Bound&) {
  if (self.is(Kind::iterator)) {
    Sequence& sequence = *std::get<Iterator>(self.data);
    return sequence.next < sequence.values.size() ? sequence.values[sequence.next++]
                                                  : undefined("the first of nothing");
  }
  const std::vector<Value> items = iterate(runtime, self);
  return items.empty() ? undefined("the first of nothing") : items.front();
}

Value last(Runtime& runtime, const Value& self, const Bound&) {
  if (self.is(Kind::iterator)) runtime.fail_type("last: an iterator has no last item; use |list first");
  const std::vector<Value> items = iterate(runtime, self);
  return items.empty() ? undefined("the last of nothing") : items.back();
}

Value list(Runtime& runtime, const Value& self, const Bound&) { return runtime.list(iterate(runtime, self)); }

Value items(Runtime& runtime, const Value& self, const Bound&) {
  if (self.is(Kind::undefined)) return runtime.iterator({});
  if (!self.is(Kind::dict)) runtime.fail_type("items: expected a dict, got {}", type_name(self));
  std::vector<Value> pairs;
  for (const auto& [key, value] : self.entries()) pairs.push_back(runtime.tuple({key, value}));
  return runtime.iterator(std::move(pairs));
}

Value reverse(Runtime& runtime, const Value& self, const Bound&) {
  if (self.is(Kind::text)) {
    std::u32string codes = python_text::decode(self.text());
    std::reverse(codes.begin(), codes.end());
    return runtime.text(python_text::encode(codes));
  }
  std::vector<Value> items = iterate(runtime, self);
  std::reverse(items.begin(), items.end());
  return self.is(Kind::iterator) ? runtime.list(std::move(items)) : runtime.iterator(std::move(items));
}

Value batch(Runtime& runtime, const Value& self, const Bound& arguments) {
  const int64_t size = integer_argument(runtime, arguments[0], 1, "batch");
  if (size < 1 || size > kMaxRange) runtime.fail_type("batch: size {}", size);
  std::vector<Value> rows, row;
  for (Value& item : iterate(runtime, self)) {
    if (static_cast<int64_t>(row.size()) == size) rows.push_back(runtime.list(std::exchange(row, {})));
    row.push_back(std::move(item));
  }
  const bool fills = arguments[1] != nullptr && !arguments[1]->is(Kind::none);
  while (!row.empty() && fills && static_cast<int64_t>(row.size()) < size) row.push_back(*arguments[1]);
  if (!row.empty()) rows.push_back(runtime.list(std::move(row)));
  return runtime.iterator(std::move(rows));
}

Value map(Runtime& runtime, const Value& self, Arguments& arguments) {
  if (!is_true(runtime, self)) return runtime.iterator({});  // also none
  std::vector<Value> mapped;
  if (arguments.positional.empty()) {
    const Value *path = nullptr, *absent = nullptr;
    for (const auto& [name, value] : arguments.keywords) {
      if (name != "attribute" && name != "default") runtime.fail_type("map() has no argument '{}'", name);
      (name == "attribute" ? path : absent) = &value;
    }
    if (path == nullptr) runtime.fail_type("map needs a filter or attribute=");
    for (const Value& item : iterate(runtime, self)) mapped.push_back(look_up_path(runtime, item, *path, absent));
    return runtime.iterator(std::move(mapped));
  }
  const std::string_view name = text_argument(runtime, &arguments.positional[0], "map");
  const Builtin* filter = find_filter(name);
  if (filter == nullptr) runtime.fail_here(ErrorCode::unsupported, "no filter named '{}'", name);
  for (const Value& item : iterate(runtime, self)) {
    runtime.charge_steps(1 + static_cast<int64_t>(arguments.positional.size()));
    Arguments rest{{arguments.positional.begin() + 1, arguments.positional.end()}, arguments.keywords};
    mapped.push_back(call_builtin(runtime, *filter, item, rest));
  }
  return runtime.iterator(std::move(mapped));
}

template <bool kKeeps, bool kByAttribute>
Value select(Runtime& runtime, const Value& self, Arguments& arguments) {
  if (!is_true(runtime, self)) return runtime.iterator({});
  constexpr size_t kOffset = kByAttribute ? 1 : 0;
  if (arguments.positional.size() < kOffset) runtime.fail_type("selectattr and rejectattr need an attribute");
  const Builtin* test = nullptr;
  if (arguments.positional.size() > kOffset) {
    const std::string_view name = text_argument(runtime, &arguments.positional[kOffset], "select");
    test = find_test(name);
    if (test == nullptr) runtime.fail_here(ErrorCode::unsupported, "no test named '{}'", name);
  }
  std::vector<Value> kept;
  for (Value& item : iterate(runtime, self)) {
    runtime.charge_steps(1 + static_cast<int64_t>(arguments.positional.size()));
    const Value subject = kByAttribute ? look_up_path(runtime, item, arguments.positional[0], nullptr) : item;
    bool matches = false;
    if (test == nullptr) {
      matches = is_true(runtime, subject);
    } else {
      Arguments rest{{arguments.positional.begin() + kOffset + 1, arguments.positional.end()}, arguments.keywords};
      matches = is_true(runtime, call_builtin(runtime, *test, subject, rest));
    }
    if (matches == kKeeps) kept.push_back(std::move(item));
  }
  return runtime.iterator(std::move(kept));
}

constexpr Builtin kListFilters[] = {
    {"sort", {"reverse", "case_sensitive", "attribute"}, 0, sort, nullptr},
    {"dictsort", {"case_sensitive", "by", "reverse"}, 0, dictsort, nullptr},
    {"unique", {"case_sensitive", "attribute"}, 0, unique, nullptr},
    {"min", {"case_sensitive", "attribute"}, 0, extreme<false>, nullptr},
    {"max", {"case_sensitive", "attribute"}, 0, extreme<true>, nullptr},
    {"groupby", {"attribute", "default", "case_sensitive"}, 1, groupby, nullptr},
    {"sum", {"attribute", "start"}, 0, sum, nullptr},
    {"join", {"d", "attribute"}, 0, join, nullptr},
    {"first", {}, 0, first, nullptr},
    {"last", {}, 0, last, nullptr},
    {"list", {}, 0, list, nullptr},
    {"items", {}, 0, items, nullptr},
    {"reverse", {}, 0, reverse, nullptr},
    {"batch", {"linecount", "fill_with"}, 1, batch, nullptr},
    {"map", {}, 0, nullptr, map},
    {"select", {}, 0, nullptr, select<true, false>},
    {"reject", {}, 0, nullptr, select<false, false>},
    {"selectattr", {}, 0, nullptr, select<true, true>},
    {"rejectattr", {}, 0, nullptr, select<false, true>},
};

}  // namespace

const Builtin* find_list_filter(std::string_view name) { return find_builtin(kListFilters, name); }

}  // namespace nibble::jinja
