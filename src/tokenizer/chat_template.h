// Chat templates: the part of Jinja that the templates of real models use.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/json.h"

namespace nibble {

/// A parsed template. Immutable; thread-safe.
class ChatTemplate {
 public:
  /// Errors: unsupported (a construct that is not understood, with line), corrupt_file (syntax, with line).
  explicit ChatTemplate(std::string_view source);
  ~ChatTemplate();
  ChatTemplate(const ChatTemplate&) = delete;
  ChatTemplate& operator=(const ChatTemplate&) = delete;

  /// Renders with the variables of `context` (messages, add_generation_prompt, bos_token, eos_token, tools, ...).
  /// Errors: invalid_argument (raise_exception, undefined use, type errors).
  std::string render(const Json& context) const;

 private:
  struct Program;
  std::unique_ptr<Program> program_;
};

}  // namespace nibble
