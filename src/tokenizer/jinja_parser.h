// Tokens to syntax tree; expressions and statements stand in files of their own.
#pragma once

#include "tokenizer/jinja_ast.h"
#include "tokenizer/jinja_lexer.h"

namespace nibble::jinja {

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}
  Body parse();

 private:
  // Statements: jinja_parser.cpp.
  /// Up to a tag that begins with one of `ends`, which is left as the next token; an empty list means to the end.
  Body parse_body(std::initializer_list<std::string_view> ends);
  std::unique_ptr<Statement> parse_statement();
  std::unique_ptr<Statement> parse_if(std::unique_ptr<Statement> statement);
  std::unique_ptr<Statement> parse_for(std::unique_ptr<Statement> statement);
  std::unique_ptr<Statement> parse_set(std::unique_ptr<Statement> statement);
  std::unique_ptr<Statement> parse_macro(std::unique_ptr<Statement> statement);
  std::unique_ptr<Statement> parse_call_block(std::unique_ptr<Statement> statement);
  std::unique_ptr<Statement> parse_with(std::unique_ptr<Statement> statement);
  void parse_signature(MacroSignature& macro);
  void parse_macro_body(Statement& statement, std::string_view end);
  void end_block(std::string_view name);

  // Expressions: jinja_parser_expressions.cpp.
  enum class Ends : uint8_t { normal, at_in, at_recursive };
  ExpressionPtr parse_tuple(bool with_conditional, Ends ends = Ends::normal, bool parenthesized = false);
  bool is_tuple_end(Ends ends) const;
  ExpressionPtr parse_target(bool with_namespace, Ends ends);
  ExpressionPtr parse_target_item(bool with_namespace);
  ExpressionPtr parse_expression(bool with_conditional = true);
  ExpressionPtr parse_conditional();
  ExpressionPtr parse_or();
  ExpressionPtr parse_and();
  ExpressionPtr parse_not();
  ExpressionPtr parse_compare();
  ExpressionPtr parse_sum();
  ExpressionPtr parse_concatenation();
  ExpressionPtr parse_product();
  ExpressionPtr parse_power();
  ExpressionPtr parse_unary(bool with_filter);
  ExpressionPtr parse_primary();
  ExpressionPtr parse_list();
  ExpressionPtr parse_dict();
  ExpressionPtr parse_postfix(ExpressionPtr node);
  ExpressionPtr parse_subscript(ExpressionPtr node);
  ExpressionPtr parse_subscript_part();
  ExpressionPtr parse_filters(ExpressionPtr node, bool starts_inline = false);
  ExpressionPtr parse_filter(ExpressionPtr node);
  ExpressionPtr parse_test(ExpressionPtr node);
  ExpressionPtr parse_call(ExpressionPtr node);
  void parse_arguments(Expression& call);

  // Tokens.
  const Token& peek() const { return tokens_[at_]; }
  const Token& take() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  bool at_symbol(std::string_view symbol) const { return peek().is(TokenKind::symbol, symbol); }
  bool at_name(std::string_view name) const { return peek().is(TokenKind::name, name); }
  bool skip_symbol(std::string_view symbol);
  bool skip_name(std::string_view name);
  void expect_symbol(std::string_view symbol);
  void expect(TokenKind kind, std::string_view what);
  std::string expect_name();
  template <typename... Args>
  [[noreturn]] void fail_line(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) const {
    fail(code, "chat template, line {}: {}", peek().line, fmt::format(format, std::forward<Args>(args)...));
  }
  [[noreturn]] void fail_unexpected(std::string_view expected) const;

  ExpressionPtr make(ExpressionKind kind, int line) const;
  /// Checks the depth of the tree below, so that walking it cannot exhaust the stack.
  ExpressionPtr finish(ExpressionPtr node) const;

  /// Counts nesting while it lives.
  class Nesting {
   public:
    explicit Nesting(Parser& parser);
    ~Nesting() { --parser_.nesting_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    Parser& parser_;
  };

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
  int loops_ = 0;       // around this point, within the macro
  int conditions_ = 0;  // an unknown filter in a branch fails only when it runs
  MacroSignature* macro_ = nullptr;
};

}  // namespace nibble::jinja
