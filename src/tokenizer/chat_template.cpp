// Chat templates on the Jinja interpreter beside.
#include "tokenizer/chat_template.h"

#include "tokenizer/jinja_ast.h"

namespace nibble {

struct ChatTemplate::Program {
  jinja::Body body;
};

ChatTemplate::ChatTemplate(std::string_view source)
    : program_(std::make_unique<Program>(Program{jinja::parse_template(source)})) {}

ChatTemplate::~ChatTemplate() = default;

std::string ChatTemplate::render(const Json& context) const {
  return jinja::render_template(program_->body, context, {});
}

}  // namespace nibble
