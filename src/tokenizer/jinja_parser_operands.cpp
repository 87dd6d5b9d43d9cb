// Operands of expressions: literals, look-ups, calls, filters and tests.
#include "tokenizer/jinja_parser.h"

namespace nibble::jinja {

ExpressionPtr Parser::parse_primary() {
  const Token& token = peek();
  const auto constant = [&](Value value) {
    ExpressionPtr node = make(ExpressionKind::constant, token.line);
    node->value = std::move(value);
    return node;
  };
  switch (token.kind) {
    case TokenKind::name: {
      take();
      if (token.text == "true" || token.text == "True") return constant(boolean(true));
      if (token.text == "false" || token.text == "False") return constant(boolean(false));
      if (token.text == "none" || token.text == "None") return constant(none());
      ExpressionPtr node = make(ExpressionKind::name, token.line);
      node->text = token.text;
      if (macro_ != nullptr) {
        macro_->uses_varargs |= token.text == "varargs";
        macro_->uses_kwargs |= token.text == "kwargs";
        macro_->uses_caller |= token.text == "caller";
      }
      return node;
    }
    case TokenKind::text: {
      std::string text;
      while (peek().kind == TokenKind::text) text += take().text;
      return constant({std::make_shared<const std::string>(std::move(text))});
    }
    case TokenKind::integer:
      take();
      return constant(integer(token.integer));
    case TokenKind::real:
      take();
      return constant(real(token.real));
    default:
      break;
  }
  if (skip_symbol("(")) {
    ExpressionPtr node = parse_tuple(true, Ends::normal, true);
    expect_symbol(")");
    return node;
  }
  if (at_symbol("[")) return parse_list();
  if (at_symbol("{")) return parse_dict();
  fail_unexpected("an expression");
}

ExpressionPtr Parser::parse_list() {
  ExpressionPtr node = make(ExpressionKind::list, take().line);
  while (!at_symbol("]")) {
    if (!node->children.empty()) expect_symbol(",");
    if (at_symbol("]")) break;
    node->children.push_back(parse_expression());
  }
  expect_symbol("]");
  return finish(std::move(node));
}

ExpressionPtr Parser::parse_dict() {
  ExpressionPtr node = make(ExpressionKind::dict, take().line);
  while (!at_symbol("}")) {
    if (!node->children.empty()) expect_symbol(",");
    if (at_symbol("}")) break;
    node->children.push_back(parse_expression());
    expect_symbol(":");
    node->children.push_back(parse_expression());
  }
  expect_symbol("}");
  return finish(std::move(node));
}

ExpressionPtr Parser::parse_postfix(ExpressionPtr node) {
  while (true) {
    if (at_symbol(".") || at_symbol("[")) {
      node = parse_subscript(std::move(node));
    } else if (at_symbol("(")) {
      node = parse_call(std::move(node));
    } else {
      return node;
    }
  }
}

ExpressionPtr Parser::parse_subscript(ExpressionPtr object) {
  const int line = peek().line;
  if (skip_symbol(".")) {
    const bool is_index = peek().kind == TokenKind::integer;
    ExpressionPtr node = make(is_index ? ExpressionKind::item : ExpressionKind::attribute, line);
    node->children.push_back(std::move(object));
    if (is_index) {
      node->children.push_back(make(ExpressionKind::constant, line));
      node->children.back()->value = integer(take().integer);
    } else {
      node->text = expect_name();
    }
    return finish(std::move(node));
  }
  expect_symbol("[");
  ExpressionPtr node = make(ExpressionKind::item, line);
  node->children.push_back(std::move(object));
  node->children.push_back(parse_subscript_part());
  if (node->children[1]->kind == ExpressionKind::slice) {
    ExpressionPtr bounds = std::move(node->children[1]);
    node->kind = ExpressionKind::slice;
    node->children.pop_back();
    for (ExpressionPtr& bound : bounds->children) node->children.push_back(std::move(bound));
  } else if (at_symbol(",")) {
    ExpressionPtr key = make(ExpressionKind::tuple, line);
    key->children.push_back(std::move(node->children[1]));
    while (skip_symbol(",")) key->children.push_back(parse_expression());
    node->children[1] = finish(std::move(key));
  }
  expect_symbol("]");
  return finish(std::move(node));
}

/// An index, or the three bounds of a slice.
ExpressionPtr Parser::parse_subscript_part() {
  const int line = peek().line;
  ExpressionPtr first;
  if (!at_symbol(":")) {
    first = parse_expression();
    if (!at_symbol(":")) return first;
  }
  ExpressionPtr node = make(ExpressionKind::slice, line);
  node->children.push_back(std::move(first));
  const auto at_end = [&] { return at_symbol(":") || at_symbol("]") || at_symbol(","); };
  for (int i = 0; i < 2; ++i) node->children.push_back(skip_symbol(":") && !at_end() ? parse_expression() : nullptr);
  if (!at_symbol("]")) fail_unexpected("']'");
  return finish(std::move(node));
}

ExpressionPtr Parser::parse_filters(ExpressionPtr node, bool starts_inline) {
  while (true) {
    if (starts_inline || at_symbol("|")) {
      if (!starts_inline) take();
      starts_inline = false;
      node = parse_filter(std::move(node));
    } else if (at_name("is")) {
      node = parse_test(std::move(node));
    } else if (at_symbol("(")) {
      node = parse_call(std::move(node));
    } else {
      return node;
    }
  }
}

ExpressionPtr Parser::parse_filter(ExpressionPtr operand) {
  ExpressionPtr node = make(ExpressionKind::filter, peek().line);
  node->text = expect_name();
  node->builtin = find_filter(node->text);
  if (node->builtin == nullptr && conditions_ == 0)
    fail_line(ErrorCode::unsupported, "no filter named '{}'", node->text);
  node->children.push_back(std::move(operand));
  if (at_symbol("(")) parse_arguments(*node);
  return finish(std::move(node));
}

ExpressionPtr Parser::parse_test(ExpressionPtr operand) {
  ExpressionPtr node = make(ExpressionKind::test, take().line);
  const bool is_negated = skip_name("not");
  node->text = expect_name();
  node->builtin = find_test(node->text);
  if (node->builtin == nullptr && conditions_ == 0) fail_line(ErrorCode::unsupported, "no test named '{}'", node->text);
  node->children.push_back(std::move(operand));
  const Token& next = peek();
  const bool has_operand = next.kind == TokenKind::text || next.kind == TokenKind::integer ||
                           next.kind == TokenKind::real || at_symbol("[") || at_symbol("{") ||
                           (next.kind == TokenKind::name && !at_name("else") && !at_name("or") && !at_name("and"));
  if (at_symbol("(")) {
    parse_arguments(*node);
  } else if (has_operand) {
    if (at_name("is")) fail_line(ErrorCode::corrupt_file, "tests cannot be chained with 'is'");
    node->arguments.push_back(parse_postfix(parse_primary()));
  }
  node = finish(std::move(node));
  if (!is_negated) return node;
  ExpressionPtr negated = make(ExpressionKind::logical_not, node->line);
  negated->children.push_back(std::move(node));
  return finish(std::move(negated));
}

ExpressionPtr Parser::parse_call(ExpressionPtr callee) {
  ExpressionPtr node = make(ExpressionKind::call, peek().line);
  node->children.push_back(std::move(callee));
  parse_arguments(*node);
  return finish(std::move(node));
}

void Parser::parse_arguments(Expression& call) {
  expect_symbol("(");
  bool is_first = true;
  while (!at_symbol(")")) {
    if (!is_first) expect_symbol(",");
    is_first = false;
    if (at_symbol(")")) break;
    if (skip_symbol("**")) {
      if (call.star_keywords) fail_unexpected("one '**' argument");
      call.star_keywords = parse_expression();
    } else if (skip_symbol("*")) {
      if (call.star_arguments || call.star_keywords) fail_unexpected("one '*' argument");
      call.star_arguments = parse_expression();
    } else if (peek().kind == TokenKind::name && tokens_[at_ + 1].is(TokenKind::symbol, "=")) {
      std::string name = expect_name();
      take();
      call.keywords.emplace_back(std::move(name), parse_expression());
    } else {
      if (!call.keywords.empty() || call.star_arguments || call.star_keywords) fail_unexpected("a keyword argument");
      call.arguments.push_back(parse_expression());
    }
  }
  expect_symbol(")");
}

}  // namespace nibble::jinja
