// Reading tokenizer.json: its steps, with the big members (vocabulary, merges) read without a JSON tree.
#pragma once

#include <string_view>
#include <vector>

#include "base/json.h"
#include "tokenizer/added_tokens.h"
#include "tokenizer/pipeline.h"

namespace nibble {

/// `more_added_tokens` (of tokenizer_config.json) count where the file itself lacks them.
/// Errors: corrupt_file (`source` and the key), unsupported (a step's type, named).
PipelineSteps read_tokenizer_json(std::string_view text, std::string_view source,
                                  const std::vector<AddedToken>& more_added_tokens);

/// One {"content": ..., "special": ...} object; its id is set by number_added_tokens.
AddedToken read_added_token(const Json& json, std::string_view source);

/// Gives every added token its id: the one its text has, or the next free one. Empty and repeated tokens go.
std::vector<AddedToken> number_added_tokens(std::vector<AddedToken> tokens, const Vocabulary& vocabulary);

}  // namespace nibble
