// Expressions, with Jinja's precedence.
#include <algorithm>

#include "tokenizer/jinja_parser.h"

namespace nibble::jinja {
namespace {

constexpr int kMaxTreeDepth = 300;
constexpr int kMaxNesting = 100;

}  // namespace

Parser::Nesting::Nesting(Parser& parser) : parser_(parser) {
  if (++parser_.nesting_ > kMaxNesting) {
    --parser_.nesting_;
    parser_.fail_line(ErrorCode::unsupported, "nested deeper than {}", kMaxNesting);
  }
}

void Parser::fail_unexpected(std::string_view expected) const {
  const Token& token = peek();
  const std::string found = token.kind == TokenKind::end ? "the end of the template"
                            : token.kind == TokenKind::variable_end || token.kind == TokenKind::block_end
                                ? "the end of the tag"
                                : "'" + token.text.substr(0, 60) + "'";
  fail_line(ErrorCode::corrupt_file, "expected {}, found {}", expected, found);
}

bool Parser::skip_symbol(std::string_view symbol) {
  if (!at_symbol(symbol)) return false;
  take();
  return true;
}

bool Parser::skip_name(std::string_view name) {
  if (!at_name(name)) return false;
  take();
  return true;
}

void Parser::expect_symbol(std::string_view symbol) {
  if (!skip_symbol(symbol)) fail_unexpected(fmt::format("'{}'", symbol));
}

void Parser::expect(TokenKind kind, std::string_view what) {
  if (peek().kind != kind) fail_unexpected(what);
  take();
}

std::string Parser::expect_name() {
  if (peek().kind != TokenKind::name) fail_unexpected("a name");
  return take().text;
}

ExpressionPtr Parser::make(ExpressionKind kind, int line) const {
  auto node = std::make_unique<Expression>();
  node->kind = kind;
  node->line = line;
  return node;
}

ExpressionPtr Parser::finish(ExpressionPtr node) const {
  const auto include = [&](const ExpressionPtr& child) {
    if (child) node->depth = std::max(node->depth, child->depth + 1);
  };
  for (const auto& child : node->children) include(child);
  for (const auto& argument : node->arguments) include(argument);
  for (const auto& [name, argument] : node->keywords) include(argument);
  include(node->star_arguments);
  include(node->star_keywords);
  if (node->depth > kMaxTreeDepth) fail_line(ErrorCode::unsupported, "an expression deeper than {}", kMaxTreeDepth);
  return node;
}

bool Parser::is_tuple_end(Ends ends) const {
  const Token& token = peek();
  if (token.kind == TokenKind::variable_end || token.kind == TokenKind::block_end || token.is(TokenKind::symbol, ")"))
    return true;
  return (ends == Ends::at_in && at_name("in")) || (ends == Ends::at_recursive && at_name("recursive"));
}

ExpressionPtr Parser::parse_tuple(bool with_conditional, Ends ends, bool parenthesized) {
  const int line = peek().line;
  std::vector<ExpressionPtr> parts;
  bool is_tuple = false;
  while (!is_tuple_end(ends)) {
    parts.push_back(parse_expression(with_conditional));
    if (!skip_symbol(",")) break;
    is_tuple = true;
  }
  if (!is_tuple && parts.size() == 1) return std::move(parts[0]);
  if (!is_tuple && !parenthesized) fail_unexpected("an expression");
  ExpressionPtr node = make(ExpressionKind::tuple, line);
  node->children = std::move(parts);
  return finish(std::move(node));
}

ExpressionPtr Parser::parse_target_item(bool with_namespace) {
  const Nesting nesting(*this);
  const int line = peek().line;
  if (skip_symbol("(")) {
    ExpressionPtr inner = parse_target(with_namespace, Ends::normal);
    expect_symbol(")");
    return inner;
  }
  const std::string name = expect_name();
  if (name == "true" || name == "false" || name == "none" || name == "True" || name == "False" || name == "None") {
    fail_line(ErrorCode::corrupt_file, "cannot assign to {}", name);
  }
  ExpressionPtr node = make(ExpressionKind::name, line);
  node->text = name;
  if (with_namespace && skip_symbol(".")) {
    ExpressionPtr target = make(ExpressionKind::space_attribute, line);
    target->text = expect_name();
    target->children.push_back(std::move(node));
    return finish(std::move(target));
  }
  return node;
}

ExpressionPtr Parser::parse_target(bool with_namespace, Ends ends) {
  const int line = peek().line;
  std::vector<ExpressionPtr> parts;
  bool is_tuple = false;
  do {
    if (!parts.empty() && is_tuple_end(ends)) break;
    parts.push_back(parse_target_item(with_namespace));
    is_tuple = is_tuple || at_symbol(",");
  } while (skip_symbol(","));
  if (!is_tuple) return std::move(parts[0]);
  ExpressionPtr node = make(ExpressionKind::tuple, line);
  node->children = std::move(parts);
  return finish(std::move(node));
}

ExpressionPtr Parser::parse_expression(bool with_conditional) {
  const Nesting nesting(*this);
  return with_conditional ? parse_conditional() : parse_or();
}

ExpressionPtr Parser::parse_conditional() {
  ExpressionPtr value = parse_or();
  while (at_name("if")) {
    ExpressionPtr node = make(ExpressionKind::conditional, take().line);
    ExpressionPtr condition = parse_or();
    ExpressionPtr otherwise = skip_name("else") ? parse_expression() : nullptr;
    node->children.push_back(std::move(condition));
    node->children.push_back(std::move(value));
    node->children.push_back(std::move(otherwise));
    value = finish(std::move(node));
  }
  return value;
}

ExpressionPtr Parser::parse_or() {
  ExpressionPtr left = parse_and();
  while (at_name("or")) {
    ExpressionPtr node = make(ExpressionKind::logical_or, take().line);
    node->children.push_back(std::move(left));
    node->children.push_back(parse_and());
    left = finish(std::move(node));
  }
  return left;
}

ExpressionPtr Parser::parse_and() {
  ExpressionPtr left = parse_not();
  while (at_name("and")) {
    ExpressionPtr node = make(ExpressionKind::logical_and, take().line);
    node->children.push_back(std::move(left));
    node->children.push_back(parse_not());
    left = finish(std::move(node));
  }
  return left;
}

ExpressionPtr Parser::parse_not() {
  if (!at_name("not")) return parse_compare();
  const Nesting nesting(*this);
  ExpressionPtr node = make(ExpressionKind::logical_not, take().line);
  node->children.push_back(parse_not());
  return finish(std::move(node));
}

ExpressionPtr Parser::parse_compare() {
  static constexpr std::pair<std::string_view, Operator> kSymbols[] = {
      {"==", Operator::equal},      {"!=", Operator::not_equal}, {"<", Operator::less},
      {"<=", Operator::less_equal}, {">", Operator::greater},    {">=", Operator::greater_equal}};
  ExpressionPtr node = make(ExpressionKind::compare, peek().line);
  node->children.push_back(parse_sum());
  while (true) {
    const Token& token = peek();
    const auto symbol = std::find_if(std::begin(kSymbols), std::end(kSymbols),
                                     [&](const auto& entry) { return token.is(TokenKind::symbol, entry.first); });
    if (symbol != std::end(kSymbols)) {
      take();
      node->operators.push_back(symbol->second);
    } else if (at_name("in")) {
      take();
      node->operators.push_back(Operator::in);
    } else if (at_name("not") && tokens_[at_ + 1].is(TokenKind::name, "in")) {
      take();
      take();
      node->operators.push_back(Operator::not_in);
    } else {
      break;
    }
    node->children.push_back(parse_sum());
  }
  if (node->operators.empty()) return std::move(node->children[0]);
  return finish(std::move(node));
}

namespace {

std::optional<Operator> binary_operator(const Token& token,
                                        std::initializer_list<std::pair<std::string_view, Operator>> table) {
  for (const auto& [symbol, op] : table) {
    if (token.is(TokenKind::symbol, symbol)) return op;
  }
  return std::nullopt;
}

}  // namespace

ExpressionPtr Parser::parse_sum() {
  ExpressionPtr left = parse_concatenation();
  while (const auto op = binary_operator(peek(), {{"+", Operator::add}, {"-", Operator::subtract}})) {
    ExpressionPtr node = make(ExpressionKind::binary, take().line);
    node->operators.push_back(*op);
    node->children.push_back(std::move(left));
    node->children.push_back(parse_concatenation());
    left = finish(std::move(node));
  }
  return left;
}

ExpressionPtr Parser::parse_concatenation() {
  ExpressionPtr node = make(ExpressionKind::concatenate, peek().line);
  do node->children.push_back(parse_product());
  while (skip_symbol("~"));
  if (node->children.size() == 1) return std::move(node->children[0]);
  return finish(std::move(node));
}

ExpressionPtr Parser::parse_product() {
  ExpressionPtr left = parse_power();
  while (const auto op = binary_operator(peek(), {{"*", Operator::multiply},
                                                  {"/", Operator::divide},
                                                  {"//", Operator::floor_divide},
                                                  {"%", Operator::modulo}})) {
    ExpressionPtr node = make(ExpressionKind::binary, take().line);
    node->operators.push_back(*op);
    node->children.push_back(std::move(left));
    node->children.push_back(parse_power());
    left = finish(std::move(node));
  }
  return left;
}

ExpressionPtr Parser::parse_power() {
  ExpressionPtr left = parse_unary(true);
  while (at_symbol("**")) {
    ExpressionPtr node = make(ExpressionKind::binary, take().line);
    node->operators.push_back(Operator::power);
    node->children.push_back(std::move(left));
    node->children.push_back(parse_unary(true));
    left = finish(std::move(node));
  }
  return left;
}

ExpressionPtr Parser::parse_unary(bool with_filter) {
  const Nesting nesting(*this);
  ExpressionPtr node;
  if (at_symbol("-") || at_symbol("+")) {
    node = make(at_symbol("-") ? ExpressionKind::negate : ExpressionKind::plus, peek().line);
    take();
    node->children.push_back(parse_unary(false));
    node = finish(std::move(node));
  } else {
    node = parse_primary();
  }
  node = parse_postfix(std::move(node));
  return with_filter ? parse_filters(std::move(node)) : std::move(node);
}

}  // namespace nibble::jinja
