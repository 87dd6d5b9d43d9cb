// Statements of a template.
#include "tokenizer/jinja_parser.h"

#include <algorithm>

namespace nibble::jinja {

Body parse_template(std::string_view source) { return Parser(tokenize(source)).parse(); }

Body Parser::parse() { return parse_body({}); }

Body Parser::parse_body(std::initializer_list<std::string_view> ends) {
  const Nesting nesting(*this);
  Body body;
  while (true) {
    const Token& token = peek();
    auto statement = std::make_unique<Statement>();
    statement->line = token.line;
    if (token.kind == TokenKind::end) {
      if (ends.size() == 0) return body;
      fail_unexpected(fmt::format("'{}'", *(ends.end() - 1)));
    } else if (token.kind == TokenKind::data) {
      statement->kind = StatementKind::data;
      statement->text = take().text;
    } else if (token.kind == TokenKind::variable_begin) {
      take();
      statement->kind = StatementKind::output;
      statement->value = parse_tuple(true);
      expect(TokenKind::variable_end, "'}}'");
    } else {
      expect(TokenKind::block_begin, "a tag");
      if (peek().kind == TokenKind::name && std::find(ends.begin(), ends.end(), peek().text) != ends.end()) return body;
      statement = parse_statement();
    }
    body.push_back(std::move(statement));
  }
}

void Parser::end_block(std::string_view name) {
  if (!skip_name(name)) fail_unexpected(fmt::format("'{}'", name));
  expect(TokenKind::block_end, "'%}'");
}

std::unique_ptr<Statement> Parser::parse_statement() {
  auto statement = std::make_unique<Statement>();
  statement->line = peek().line;
  const std::string name = expect_name();
  if (name == "if") return parse_if(std::move(statement));
  if (name == "for") return parse_for(std::move(statement));
  if (name == "set") return parse_set(std::move(statement));
  if (name == "macro") return parse_macro(std::move(statement));
  if (name == "call") return parse_call_block(std::move(statement));
  if (name == "with") return parse_with(std::move(statement));
  if (name == "filter") {
    statement->kind = StatementKind::filter_block;
    statement->value = parse_filters(nullptr, true);
    expect(TokenKind::block_end, "'%}'");
    statement->body = parse_body({"endfilter"});
    end_block("endfilter");
  } else if (name == "generation") {
    statement->kind = StatementKind::generation;
    expect(TokenKind::block_end, "'%}'");
    statement->body = parse_body({"endgeneration"});
    end_block("endgeneration");
  } else if (name == "break" || name == "continue") {
    if (loops_ == 0) fail_line(ErrorCode::corrupt_file, "'{}' outside of a loop", name);
    statement->kind = name == "break" ? StatementKind::break_loop : StatementKind::continue_loop;
    expect(TokenKind::block_end, "'%}'");
  } else {
    fail_line(ErrorCode::unsupported, "tag '{}'", name);
  }
  return statement;
}

std::unique_ptr<Statement> Parser::parse_if(std::unique_ptr<Statement> statement) {
  statement->kind = StatementKind::condition;
  ++conditions_;
  ExpressionPtr test = parse_tuple(false);
  expect(TokenKind::block_end, "'%}'");
  while (true) {
    Body body = parse_body({"elif", "else", "endif"});
    statement->branches.emplace_back(std::move(test), std::move(body));
    if (skip_name("elif")) {
      test = parse_tuple(false);
      expect(TokenKind::block_end, "'%}'");
      continue;
    }
    if (skip_name("else")) {
      expect(TokenKind::block_end, "'%}'");
      statement->branches.emplace_back(nullptr, parse_body({"endif"}));
    }
    end_block("endif");
    --conditions_;
    return statement;
  }
}

std::unique_ptr<Statement> Parser::parse_for(std::unique_ptr<Statement> statement) {
  statement->kind = StatementKind::loop;
  statement->target = parse_target(false, Ends::at_in);
  if (!skip_name("in")) fail_unexpected("'in'");
  statement->value = parse_tuple(false, Ends::at_recursive);
  if (skip_name("if")) statement->filter = parse_expression();
  if (at_name("recursive")) fail_line(ErrorCode::unsupported, "a recursive loop");
  expect(TokenKind::block_end, "'%}'");
  ++loops_;
  statement->body = parse_body({"else", "endfor"});
  --loops_;
  if (skip_name("else")) {
    expect(TokenKind::block_end, "'%}'");
    statement->otherwise = parse_body({"endfor"});
  }
  end_block("endfor");
  return statement;
}

std::unique_ptr<Statement> Parser::parse_set(std::unique_ptr<Statement> statement) {
  statement->target = parse_target(true, Ends::normal);
  if (skip_symbol("=")) {
    statement->kind = StatementKind::assign;
    statement->value = parse_tuple(true);
    expect(TokenKind::block_end, "'%}'");
    return statement;
  }
  statement->kind = StatementKind::assign_block;
  if (at_symbol("|")) statement->value = parse_filters(nullptr);
  expect(TokenKind::block_end, "'%}'");
  statement->body = parse_body({"endset"});
  end_block("endset");
  return statement;
}

void Parser::parse_signature(MacroSignature& macro) {
  expect_symbol("(");
  while (!at_symbol(")")) {
    if (!macro.parameters.empty()) expect_symbol(",");
    if (at_symbol(")")) break;
    macro.parameters.push_back(expect_name());
    if (skip_symbol("=")) {
      macro.defaults.push_back(parse_expression());
    } else if (!macro.defaults.empty()) {
      fail_unexpected("a default value");
    }
  }
  expect_symbol(")");
}

void Parser::parse_macro_body(Statement& statement, std::string_view end) {
  MacroSignature* const outer = std::exchange(macro_, &statement.macro);
  const int outer_loops = std::exchange(loops_, 0);
  statement.body = parse_body({end});
  loops_ = outer_loops;
  macro_ = outer;
  // What an inner call block takes from around it, this macro must have.
  if (outer != nullptr && statement.kind == StatementKind::call_block) {
    outer->uses_varargs |= statement.macro.uses_varargs;
    outer->uses_kwargs |= statement.macro.uses_kwargs;
    outer->uses_caller |= statement.macro.uses_caller;
  }
  end_block(end);
}

std::unique_ptr<Statement> Parser::parse_macro(std::unique_ptr<Statement> statement) {
  statement->kind = StatementKind::macro;
  statement->macro.name = expect_name();
  parse_signature(statement->macro);
  expect(TokenKind::block_end, "'%}'");
  parse_macro_body(*statement, "endmacro");
  return statement;
}

std::unique_ptr<Statement> Parser::parse_call_block(std::unique_ptr<Statement> statement) {
  statement->kind = StatementKind::call_block;
  statement->macro.name = "caller";
  if (at_symbol("(")) parse_signature(statement->macro);
  statement->value = parse_expression();
  if (statement->value->kind != ExpressionKind::call) fail_unexpected("a call");
  expect(TokenKind::block_end, "'%}'");
  parse_macro_body(*statement, "endcall");
  return statement;
}

std::unique_ptr<Statement> Parser::parse_with(std::unique_ptr<Statement> statement) {
  statement->kind = StatementKind::with;
  while (peek().kind != TokenKind::block_end) {
    if (!statement->variables.empty()) expect_symbol(",");
    ExpressionPtr target = parse_target_item(false);
    expect_symbol("=");
    statement->variables.emplace_back(std::move(target), parse_expression());
  }
  take();
  statement->body = parse_body({"endwith"});
  end_block("endwith");
  return statement;
}

}  // namespace nibble::jinja
