// Text to token ids and back, from tokenizer.json or tokenizer.model.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/types.h"

namespace nibble {

struct EncodeOptions {
  bool add_special_tokens = true;  // the post-processor's, such as a leading <s>
};

struct DecodeOptions {
  bool skip_special_tokens = false;
};

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

class Tokenizer;     // src/tokenizer
class ChatTemplate;  // src/tokenizer

/// A tokenizer with its chat template. Thread-safe after loading; copies share it.
class AutoTokenizer {
 public:
  /// `path`: a directory with tokenizer.json (or tokenizer.model) and optionally tokenizer_config.json,
  /// chat_template.jinja, generation_config.json and config.json; one of the tokenizer files; or a .gguf file.
  /// Errors: not_found, corrupt_file (the file and key), unsupported (a model or normalizer type).
  static AutoTokenizer from_pretrained(const std::filesystem::path& path);

  /// Ids of UTF-8 text; bytes that are no UTF-8 count as U+FFFD, as Python's decode(errors="replace") makes them.
  std::vector<int32_t> operator()(std::string_view text, const EncodeOptions& options = {}) const;
  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options = {}) const;
  /// Errors: invalid_argument for an id outside the vocabulary.
  std::string decode(std::span<const int32_t> ids, const DecodeOptions& options = {}) const;

  bool has_chat_template() const;
  /// The conversation as the model was trained to see it. Errors: not_found without a template, invalid_argument when
  /// the template refuses (raise_exception), unsupported for Jinja that is not understood.
  std::string apply_chat_template(std::span<const ChatMessage> messages, bool add_generation_prompt = true) const;

  int32_t vocab_size() const;
  std::optional<int32_t> bos_token_id() const;
  std::optional<int32_t> eos_token_id() const;
  std::optional<int32_t> pad_token_id() const;
  std::optional<int32_t> token_to_id(std::string_view token) const;

  const Tokenizer& implementation() const { return *tokenizer_; }

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<const ChatTemplate> chat_template_;
  std::optional<Error> chat_template_error_;  // why the template could not be read
  std::optional<int32_t> bos_token_id_;
  std::optional<int32_t> eos_token_id_;
  std::optional<int32_t> pad_token_id_;
  std::optional<int32_t> unk_token_id_;
};

}  // namespace nibble
