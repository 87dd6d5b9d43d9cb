// Generation: prompts in; tokens, text and times out.
#pragma once

#include <span>
#include <vector>

#include "generate/token_model.h"
#include "nibble/model.h"
#include "tokenizer/tokenizer.h"

namespace nibble {

/// Sequences that the session for generate() must have, all empty: one a prompt, or one a beam of each prompt.
int64_t sequences_needed(size_t prompts, const GenerationConfig& config);

/// Continues each prompt; rows end one by one. `tokenizer` may be null: then there is no text and `stop` must be empty.
/// `config.eos_token_id` must hold the model's if they are to count. A row's tokens do not depend on the other rows as
/// far as the model's logits do not. With beams, `on_token` hears the tokens when the search has ended.
/// Errors: invalid_argument (options, an empty prompt, ids outside the vocabulary), cancelled (seen between tokens).
GenerationOutput generate(TokenModel& model, const Tokenizer* tokenizer,
                          const std::vector<std::vector<int32_t>>& prompts, const GenerationConfig& config,
                          const TokenCallback& on_token = {});
GenerationOutput generate(Session& session, const Tokenizer* tokenizer,
                          const std::vector<std::vector<int32_t>>& prompts, const GenerationConfig& config,
                          const TokenCallback& on_token = {});

}  // namespace nibble
