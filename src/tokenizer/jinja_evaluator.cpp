// Statements: output, conditions, assignments.
#include "tokenizer/jinja_evaluator.h"

namespace nibble::jinja {
namespace {

constexpr int kMaxLevel = 900;

}  // namespace

std::string render_template(const Body& body, const Json& context, const Limits& limits) {
  return Evaluator(context, limits).run(body);
}

Evaluator::Inner::Inner(Evaluator& evaluator, const Scope* parent) : evaluator_(evaluator) {
  evaluator.runtime_.charge_bytes(sizeof(Scope));
  evaluator.scopes_.push_back({parent, evaluator.next_serial_++, {}});
}
Evaluator::Inner::~Inner() { evaluator_.scopes_.pop_back(); }

Evaluator::Level::Level(Evaluator& evaluator) : evaluator_(evaluator) {
  if (evaluator.level_ >= kMaxLevel) evaluator.runtime_.fail_type("recursion deeper than {}", kMaxLevel);
  ++evaluator.level_;
}

Evaluator::Evaluator(const Json& context, const Limits& limits) : runtime_(limits) {
  if (!context.is_object()) fail(ErrorCode::invalid_argument, "chat template: the context is no JSON object");
  for (const auto& [name, value] : context.items()) context_.emplace_back(name, runtime_.from_json(value));
}

std::string Evaluator::run(const Body& body) {
  const RuntimeGuard guard(runtime_);
  std::string out;
  out_ = &out;
  const Inner root(*this, nullptr);
  run_body(body);
  return out;
}

void Evaluator::write(std::string_view text) {
  runtime_.charge_bytes(text.size());
  *out_ += text;
}

Evaluator::Flow Evaluator::run_body(const Body& body) {
  for (const auto& statement : body) {
    const Flow flow = run_statement(*statement);
    if (flow != Flow::next) return flow;
  }
  return Flow::next;
}

Evaluator::Flow Evaluator::run_statement(const Statement& statement) {
  const Level level(*this);
  runtime_.charge_steps(1);
  runtime_.line = statement.line;
  switch (statement.kind) {
    case StatementKind::data:
      write(statement.text);
      break;
    case StatementKind::output: {
      const Value value = evaluate(*statement.value);
      value.is(Kind::text) ? write(value.text()) : write(to_text(runtime_, value));
      break;
    }
    case StatementKind::condition:
      return run_condition(statement);
    case StatementKind::loop:
      return run_loop(statement);
    case StatementKind::assign:
      run_assign(statement);
      break;
    case StatementKind::assign_block:
      run_assign_block(statement);
      break;
    case StatementKind::macro:
      set_variable(statement.macro.name, make_macro(statement));
      break;
    case StatementKind::call_block:
      run_call_block(statement);
      break;
    case StatementKind::filter_block: {
      const Value filtered = apply_filters(*statement.value, runtime_.text(capture(statement.body)));
      write(to_text(runtime_, filtered));
      break;
    }
    case StatementKind::with:
      run_with(statement);
      break;
    case StatementKind::generation:
      write(capture(statement.body));
      break;
    case StatementKind::break_loop:
      return Flow::break_loop;
    case StatementKind::continue_loop:
      return Flow::continue_loop;
  }
  return Flow::next;
}

Evaluator::Flow Evaluator::run_condition(const Statement& statement) {
  for (const auto& [test, body] : statement.branches) {
    if (!test || is_true(runtime_, evaluate(*test))) return run_body(body);
  }
  return Flow::next;
}

void Evaluator::run_assign(const Statement& statement) { assign(*statement.target, evaluate(*statement.value)); }

void Evaluator::run_assign_block(const Statement& statement) {
  Value value = runtime_.text(capture(statement.body));
  if (statement.value) value = apply_filters(*statement.value, value);
  assign(*statement.target, value);
}

void Evaluator::run_with(const Statement& statement) {
  std::vector<Value> values;  // all in the scope around
  for (const auto& [target, value] : statement.variables) values.push_back(evaluate(*value));
  const Inner inner(*this, &scopes_.back());
  for (size_t i = 0; i < values.size(); ++i) assign(*statement.variables[i].first, values[i]);
  run_body(statement.body);
}

std::string Evaluator::capture(const Body& body) {
  std::string text;
  std::string* const outer = std::exchange(out_, &text);
  struct Restore {
    std::string*& slot;
    std::string* value;
    ~Restore() { slot = value; }
  } restore{out_, outer};
  const Inner inner(*this, &scopes_.back());
  run_body(body);
  return text;
}

void Evaluator::set_variable(std::string_view name, Value value) {
  runtime_.charge_steps(static_cast<int64_t>(scopes_.back().variables.size() / 16));
  for (auto& [known, current] : scopes_.back().variables) {
    if (known == name) {
      current = std::move(value);
      return;
    }
  }
  scopes_.back().variables.emplace_back(name, std::move(value));
}

Value Evaluator::look_up(std::string_view name) {
  for (const Scope* scope = &scopes_.back(); scope != nullptr; scope = scope->parent) {
    runtime_.charge_steps(static_cast<int64_t>(scope->variables.size() / 16));
    for (const auto& [known, value] : scope->variables) {
      if (known == name) return value;
    }
  }
  for (const auto& [known, value] : context_) {
    if (known == name) return value;
  }
  return find_global(runtime_, name);
}

void Evaluator::assign(const Expression& target, const Value& value) {
  if (target.kind == ExpressionKind::name) return set_variable(target.text, value);
  if (target.kind == ExpressionKind::tuple) {
    const std::vector<Value> parts = iterate(runtime_, value);
    if (parts.size() != target.children.size()) {
      runtime_.fail_type("expected {} values to unpack, got {}", target.children.size(), parts.size());
    }
    for (size_t i = 0; i < parts.size(); ++i) assign(*target.children[i], parts[i]);
    return;
  }
  const Value space = look_up(target.children[0]->text);
  if (!space.is(Kind::space)) {
    runtime_.fail_type("cannot set an attribute of '{}': it is no namespace", target.children[0]->text);
  }
  if (target.text.starts_with('_')) runtime_.fail_type("a namespace attribute may not begin with '_': {}", target.text);
  auto& attributes = std::get<Namespace>(space.data)->values;
  runtime_.charge_steps(static_cast<int64_t>(attributes.size() / 16));
  for (auto& [name, current] : attributes) {
    if (name == target.text) {
      current = value;
      return;
    }
  }
  attributes.emplace_back(target.text, value);
}

}  // namespace nibble::jinja
