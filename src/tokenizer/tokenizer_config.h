// What the files around a tokenizer say: special tokens, the chat template, how a tokenizer.model is wrapped.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "tokenizer/added_tokens.h"

namespace nibble {

/// From tokenizer_config.json, special_tokens_map.json, generation_config.json, config.json and chat_template.jinja,
/// the earlier file counting; every file may be missing.
struct TokenizerConfig {
  std::string tokenizer_class;
  std::optional<bool> add_bos_token;
  std::optional<bool> add_eos_token;
  std::vector<AddedToken> added_tokens;  // "added_tokens_decoder", by id
  std::optional<std::string> bos_token;
  std::optional<std::string> eos_token;
  std::optional<std::string> pad_token;
  std::optional<std::string> unk_token;
  std::optional<int32_t> bos_token_id;  // only from files that name no text
  std::optional<int32_t> eos_token_id;
  std::optional<int32_t> pad_token_id;
  std::optional<std::string> chat_template;
};

/// Errors: corrupt_file (the file and key), io.
TokenizerConfig read_tokenizer_config(const std::filesystem::path& directory);
/// The same from the contents of two of the files, named `source` in errors.
TokenizerConfig read_tokenizer_config(const Json& tokenizer_config, const Json& generation_config,
                                      const std::string& source);

}  // namespace nibble
