// Evaluating expressions.
#include "tokenizer/jinja_evaluator.h"

namespace nibble::jinja {

Value Evaluator::evaluate(const Expression& node) {
  const Level level(*this);
  runtime_.charge_steps(1);
  runtime_.line = node.line;
  return evaluate_node(node);
}

Value Evaluator::evaluate_node(const Expression& node) {
  const auto operand = [&](size_t i) { return evaluate(*node.children[i]); };
  switch (node.kind) {
    case ExpressionKind::constant:
      return node.value;
    case ExpressionKind::name:
      return look_up(node.text);
    case ExpressionKind::tuple:
      return runtime_.tuple(evaluate_all(node.children));
    case ExpressionKind::list:
      return runtime_.list(evaluate_all(node.children));
    case ExpressionKind::dict:
      return evaluate_dict(node);
    case ExpressionKind::attribute:
      return get_attribute(runtime_, operand(0), node.text);
    case ExpressionKind::item: {
      const Value object = operand(0);
      return get_item(runtime_, object, operand(1));
    }
    case ExpressionKind::slice:
      return evaluate_slice(node);
    case ExpressionKind::call: {
      const Value callee = operand(0);
      Arguments arguments = evaluate_arguments(node);
      runtime_.line = node.line;
      return call(runtime_, callee, arguments);
    }
    case ExpressionKind::filter:
    case ExpressionKind::test:
      return evaluate_builtin(node, operand(0));
    case ExpressionKind::negate:
      return negate(runtime_, operand(0));
    case ExpressionKind::plus:
      return negate(runtime_, negate(runtime_, operand(0)));
    case ExpressionKind::logical_not:
      return boolean(!is_true(runtime_, operand(0)));
    case ExpressionKind::logical_and:
    case ExpressionKind::logical_or: {
      Value left = operand(0);
      return is_true(runtime_, left) == (node.kind == ExpressionKind::logical_and) ? operand(1) : left;
    }
    case ExpressionKind::binary: {
      const Value left = operand(0), right = operand(1);
      runtime_.line = node.line;
      return apply(runtime_, node.operators[0], left, right);
    }
    case ExpressionKind::concatenate:
      return evaluate_concatenation(node);
    case ExpressionKind::compare:
      return evaluate_compare(node);
    case ExpressionKind::conditional:
      if (is_true(runtime_, operand(0))) return operand(1);
      return node.children[2] ? operand(2) : undefined("the value of an if without else");
    case ExpressionKind::space_attribute:
      break;
  }
  runtime_.fail_here(ErrorCode::internal, "an expression that has no value");
}

Value Evaluator::evaluate_slice(const Expression& node) {
  const Value object = evaluate(*node.children[0]);
  std::optional<Value> bounds[3];
  for (size_t i = 0; i < 3; ++i) {
    if (node.children[i + 1]) bounds[i] = evaluate(*node.children[i + 1]);
  }
  const auto pointer = [&](size_t i) { return bounds[i] ? &*bounds[i] : nullptr; };
  return get_slice(runtime_, object, pointer(0), pointer(1), pointer(2));
}

Value Evaluator::evaluate_dict(const Expression& node) {
  std::vector<std::pair<Value, Value>> entries;
  for (size_t i = 0; i + 1 < node.children.size(); i += 2) {
    Value key = evaluate(*node.children[i]), value = evaluate(*node.children[i + 1]);
    if (key.is(Kind::list) || key.is(Kind::dict)) runtime_.fail_type("a {} cannot be a key", type_name(key));
    size_t at = 0;
    while (at < entries.size() && !are_equal(runtime_, entries[at].first, key)) ++at;
    if (at < entries.size()) {
      entries[at].second = std::move(value);
    } else {
      entries.emplace_back(std::move(key), std::move(value));
    }
  }
  return runtime_.dict(std::move(entries));
}

Value Evaluator::evaluate_compare(const Expression& node) {
  Value left = evaluate(*node.children[0]);
  for (size_t i = 0; i < node.operators.size(); ++i) {
    Value right = evaluate(*node.children[i + 1]);
    runtime_.line = node.line;
    if (!is_true(runtime_, apply(runtime_, node.operators[i], left, right))) return boolean(false);
    left = std::move(right);
  }
  return boolean(true);
}

Value Evaluator::evaluate_concatenation(const Expression& node) {
  std::string text;
  for (const auto& child : node.children) text += to_text(runtime_, evaluate(*child));
  return runtime_.text(std::move(text));
}

Value Evaluator::evaluate_builtin(const Expression& node, const Value& self) {
  Arguments arguments = evaluate_arguments(node);
  runtime_.line = node.line;
  if (node.builtin == nullptr) {
    runtime_.fail_here(ErrorCode::unsupported, "no {} named '{}'",
                       node.kind == ExpressionKind::filter ? "filter" : "test", node.text);
  }
  return call_builtin(runtime_, *node.builtin, self, arguments);
}

/// A chain of filters whose innermost operand is absent: it is `self`.
Value Evaluator::apply_filters(const Expression& node, const Value& self) {
  if (node.kind != ExpressionKind::filter)
    runtime_.fail_here(ErrorCode::unsupported, "a block filter that is no filter");
  const Level level(*this);
  return evaluate_builtin(node, node.children[0] ? apply_filters(*node.children[0], self) : self);
}

std::vector<Value> Evaluator::evaluate_all(const std::vector<ExpressionPtr>& nodes) {
  std::vector<Value> values;
  values.reserve(nodes.size());
  for (const auto& node : nodes) values.push_back(evaluate(*node));
  return values;
}

Arguments Evaluator::evaluate_arguments(const Expression& node) {
  Arguments arguments;
  arguments.positional = evaluate_all(node.arguments);
  for (const auto& [name, value] : node.keywords) arguments.keywords.emplace_back(name, evaluate(*value));
  if (node.star_arguments) {
    for (Value& value : iterate(runtime_, evaluate(*node.star_arguments)))
      arguments.positional.push_back(std::move(value));
  }
  if (node.star_keywords) {
    const Value extra = evaluate(*node.star_keywords);
    if (!extra.is(Kind::dict)) runtime_.fail_type("'**' needs a dict, got {}", type_name(extra));
    for (const auto& [key, value] : extra.entries()) {
      arguments.keywords.emplace_back(text_argument(runtime_, &key, "'**'"), value);
    }
  }
  return arguments;
}

}  // namespace nibble::jinja
