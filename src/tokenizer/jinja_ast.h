// The syntax tree of a chat template.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/jinja_operators.h"

namespace nibble::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<Expression>;

enum class ExpressionKind : uint8_t {
  constant,
  name,
  tuple,
  list,
  dict,
  attribute,
  item,
  slice,
  call,
  filter,
  test,
  negate,
  plus,
  logical_not,
  logical_and,
  logical_or,
  binary,
  concatenate,
  compare,
  conditional,
  space_attribute,  // ns.name as the target of set
};

struct Expression {
  ExpressionKind kind;
  int line = 0;
  int depth = 1;
  std::string text;                      // name, attribute, filter or test
  Value value;                           // constant
  std::vector<ExpressionPtr> children;   // operands; null for an absent slice bound or else
  std::vector<Operator> operators;       // compare: one between each two children; binary: one
  std::vector<ExpressionPtr> arguments;  // call, filter, test
  std::vector<std::pair<std::string, ExpressionPtr>> keywords;
  ExpressionPtr star_arguments, star_keywords;
  const Builtin* builtin = nullptr;  // filter, test
};

struct Statement;
using Body = std::vector<std::unique_ptr<Statement>>;

enum class StatementKind : uint8_t {
  data,
  output,
  condition,
  loop,
  assign,
  assign_block,
  macro,
  call_block,
  filter_block,
  with,
  generation,
  break_loop,
  continue_loop,
};

/// A macro, or the body of a call block.
struct MacroSignature {
  std::string name;
  std::vector<std::string> parameters;
  std::vector<ExpressionPtr> defaults;  // of the last parameters
  bool uses_varargs = false, uses_kwargs = false, uses_caller = false;
};

struct Statement {
  StatementKind kind;
  int line = 0;
  std::string text;                                      // data
  ExpressionPtr target;                                  // loop, assign
  ExpressionPtr value;                                   // output, loop, assign, call_block, filter chain of a block
  ExpressionPtr filter;                                  // loop: the condition behind `if`
  Body body, otherwise;                                  // otherwise: else of a loop
  std::vector<std::pair<ExpressionPtr, Body>> branches;  // condition: null stands for else
  std::vector<std::pair<ExpressionPtr, ExpressionPtr>> variables;  // with
  MacroSignature macro;
};

/// Errors: corrupt_file and unsupported, with the line.
Body parse_template(std::string_view source);

/// Renders under `limits`. Errors: invalid_argument.
std::string render_template(const Body& body, const Json& context, const Limits& limits);

}  // namespace nibble::jinja
