// Loops and macros.
#include "tokenizer/jinja_evaluator.h"

namespace nibble::jinja {
namespace {

/// Ends a loop however its body ends.
struct LoopEnd {
  LoopState& state;
  ~LoopEnd() { state.end(); }
};

}  // namespace

std::optional<Value> Evaluator::next_item(const Statement& statement, const std::vector<Value>& items,
                                          size_t& position) {
  while (position < items.size()) {
    const Value item = items[position++];
    runtime_.charge_steps(1);
    if (!statement.filter) return item;
    const Inner inner(*this, &scopes_.back());
    assign(*statement.target, item);
    if (is_true(runtime_, evaluate(*statement.filter))) return item;
  }
  return std::nullopt;
}

Evaluator::Flow Evaluator::run_loop(const Statement& statement) {
  const std::vector<Value> items = iterate(runtime_, evaluate(*statement.value));
  size_t position = 0;
  bool has_completed = false;  // as in jinja2, break and continue do not count for the else block
  auto state = std::make_shared<LoopState>();
  state->pull = [&] { return next_item(statement, items, position); };
  {
    const LoopEnd end{*state};
    while (state->advance()) {
      const Inner inner(*this, &scopes_.back());
      scopes_.back().variables.emplace_back("loop", Value{state});
      assign(*statement.target, *state->current);
      const Flow flow = run_body(statement.body);
      if (flow == Flow::break_loop) break;
      has_completed = has_completed || flow == Flow::next;
    }
  }
  if (!has_completed && !statement.otherwise.empty()) {
    const Inner inner(*this, &scopes_.back());
    return run_body(statement.otherwise);
  }
  return Flow::next;
}

Value Evaluator::make_macro(const Statement& statement) {
  const size_t depth = scopes_.size() - 1;
  const uint64_t serial = scopes_.back().serial;
  return runtime_.function(statement.macro.name, none(),
                           [this, &statement, depth, serial](Runtime&, Arguments& arguments) {
                             return call_macro(statement, depth, serial, arguments);
                           });
}

void Evaluator::run_call_block(const Statement& statement) {
  const Expression& node = *statement.value;
  const Value callee = evaluate(*node.children[0]);
  Arguments arguments = evaluate_arguments(node);
  arguments.keywords.emplace_back("caller", make_macro(statement));
  runtime_.line = statement.line;
  write(to_text(runtime_, call(runtime_, callee, arguments)));
}

Value Evaluator::call_macro(const Statement& statement, size_t depth, uint64_t serial, Arguments& arguments) {
  if (depth >= scopes_.size() || scopes_[depth].serial != serial) {
    runtime_.fail_here(ErrorCode::unsupported, "macro '{}' is called outside of the block that defines it",
                       statement.macro.name);
  }
  std::string text;
  struct Restore {
    Evaluator& evaluator;
    std::string* out;
    int line;
    ~Restore() {
      evaluator.out_ = out;
      evaluator.runtime_.line = line;
    }
  } restore{*this, out_, runtime_.line};
  out_ = &text;
  const Level level(*this);
  const Inner inner(*this, &scopes_[depth]);
  bind_arguments(statement.macro, arguments);
  run_body(statement.body);
  return runtime_.text(std::move(text));
}

void Evaluator::bind_arguments(const MacroSignature& macro, Arguments& arguments) {
  const size_t count = macro.parameters.size(), given = arguments.positional.size();
  std::vector<std::pair<Value, Value>> extra_keywords;
  std::vector<std::optional<Value>> bound(count);
  for (size_t i = 0; i < std::min(count, given); ++i) bound[i] = arguments.positional[i];
  std::optional<Value> caller;
  for (auto& [name, value] : arguments.keywords) {
    runtime_.charge_steps(1 + static_cast<int64_t>(count / 16));
    size_t i = 0;
    while (i < count && macro.parameters[i] != name) ++i;
    if (i < count) {
      if (bound[i]) runtime_.fail_type("macro '{}' got argument '{}' twice", macro.name, name);
      bound[i] = value;
    } else if (name == "caller" && macro.uses_caller) {
      caller = value;
    } else if (macro.uses_kwargs) {
      extra_keywords.emplace_back(runtime_.text(name), value);
    } else {
      runtime_.fail_type("macro '{}' has no parameter '{}'", macro.name, name);
    }
  }
  if (given > count && !macro.uses_varargs)
    runtime_.fail_type("macro '{}' takes {} arguments, {} given", macro.name, count, given);
  if (macro.uses_caller) set_variable("caller", caller.value_or(undefined("'caller'")));
  if (macro.uses_kwargs) set_variable("kwargs", runtime_.dict(std::move(extra_keywords)));
  if (macro.uses_varargs) {
    const auto begin = arguments.positional.begin() + static_cast<ptrdiff_t>(std::min(count, given));
    set_variable("varargs", runtime_.tuple({begin, arguments.positional.end()}));
  }
  const size_t first_default = count - macro.defaults.size();
  for (size_t i = 0; i < count; ++i) {
    if (!bound[i]) {
      bound[i] = i >= first_default
                     ? evaluate(*macro.defaults[i - first_default])
                     : undefined(fmt::format("parameter '{}' of macro '{}'", macro.parameters[i], macro.name));
    }
    set_variable(macro.parameters[i], *bound[i]);
  }
}

}  // namespace nibble::jinja
