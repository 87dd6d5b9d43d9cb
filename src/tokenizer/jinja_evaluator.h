// Runs a syntax tree: scopes, statements and expressions.
#pragma once

#include <deque>

#include "tokenizer/jinja_ast.h"
#include "tokenizer/jinja_loop.h"

namespace nibble::jinja {

/// Variables of a block; looks further in its parent.
struct Scope {
  const Scope* parent = nullptr;
  uint64_t serial = 0;
  std::vector<std::pair<std::string_view, Value>> variables;  // names live in the tree
};

class Evaluator {
 public:
  Evaluator(const Json& context, const Limits& limits);
  std::string run(const Body& body);

 private:
  enum class Flow : uint8_t { next, break_loop, continue_loop };

  // Statements: jinja_evaluator.cpp.
  Flow run_body(const Body& body);
  Flow run_statement(const Statement& statement);
  Flow run_condition(const Statement& statement);
  void run_assign(const Statement& statement);
  void run_assign_block(const Statement& statement);
  void run_with(const Statement& statement);
  void write(std::string_view text);
  /// Output of a body in a scope of its own.
  std::string capture(const Body& body);
  void assign(const Expression& target, const Value& value);
  void set_variable(std::string_view name, Value value);
  Value look_up(std::string_view name);

  // Loops and macros: jinja_blocks.cpp.
  Flow run_loop(const Statement& statement);
  std::optional<Value> next_item(const Statement& statement, const std::vector<Value>& items, size_t& position);
  Value make_macro(const Statement& statement);
  void run_call_block(const Statement& statement);
  Value call_macro(const Statement& statement, size_t depth, uint64_t serial, Arguments& arguments);
  void bind_arguments(const MacroSignature& macro, Arguments& arguments);

  // Expressions: jinja_expressions.cpp.
  Value evaluate(const Expression& node);
  Value evaluate_node(const Expression& node);
  Value evaluate_slice(const Expression& node);
  Value evaluate_dict(const Expression& node);
  Value evaluate_compare(const Expression& node);
  Value evaluate_concatenation(const Expression& node);
  Value evaluate_builtin(const Expression& node, const Value& self);
  Value apply_filters(const Expression& node, const Value& self);
  std::vector<Value> evaluate_all(const std::vector<ExpressionPtr>& nodes);
  Arguments evaluate_arguments(const Expression& node);

  /// A scope for as long as it lives.
  class Inner {
   public:
    Inner(Evaluator& evaluator, const Scope* parent);
    ~Inner();
    Inner(const Inner&) = delete;
    Inner& operator=(const Inner&) = delete;

   private:
    Evaluator& evaluator_;
  };
  /// One level of recursion.
  class Level {
   public:
    explicit Level(Evaluator& evaluator);
    ~Level() { --evaluator_.level_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;

   private:
    Evaluator& evaluator_;
  };

  Runtime runtime_;
  std::deque<Scope> scopes_;  // all that live, innermost last
  uint64_t next_serial_ = 1;
  std::string* out_ = nullptr;
  int level_ = 0;
  std::vector<std::pair<std::string, Value>> context_;
};

}  // namespace nibble::jinja
