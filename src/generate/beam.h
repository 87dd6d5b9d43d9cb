// Beam search with the rules of transformers' generate().
#pragma once

#include "generate/generator.h"

namespace nibble {

/// The best of `config.num_beams` sequences for each prompt: log-probability over length to the power of
/// length_penalty, where the length counts new tokens. Arguments are checked already.
GenerationOutput beam_search(TokenModel& model, const Tokenizer* tokenizer,
                             const std::vector<std::vector<int32_t>>& prompts, const GenerationConfig& config,
                             const TokenCallback& on_token);

}  // namespace nibble
