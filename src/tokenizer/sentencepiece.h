// tokenizer.model of SentencePiece: BPE and Unigram models with their normalizer.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "tokenizer/pipeline.h"

namespace nibble {

/// What the tokenizer around a SentencePiece model adds.
struct SentencePieceOptions {
  bool add_bos = true;  // where the model has such a piece
  bool add_eos = false;
  std::vector<AddedToken> added_tokens;  // of tokenizer_config.json
};

/// Ids are those of the `sentencepiece` package, but control pieces inside the text are found, as transformers does.
/// Errors: corrupt_file (with `source`), unsupported (word and character models, unused pieces in BPE).
PipelineSteps read_sentencepiece(std::string_view bytes, const SentencePieceOptions& options, std::string_view source);

}  // namespace nibble
