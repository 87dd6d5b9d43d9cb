// SentencePiece's own normalization: its rules, longest first, then white space as visible marks.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "tokenizer/charsmap.h"
#include "tokenizer/normalizer.h"

namespace nibble {

struct SentencePieceRules {
  std::optional<Charsmap> charsmap;
  std::vector<std::string> user_defined;  // texts that are never changed
  bool add_dummy_prefix = true;           // a mark before the text
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;  // spaces become U+2581
  bool whitespace_as_suffix = false;
};

std::unique_ptr<Normalizer> make_sentencepiece_normalizer(SentencePieceRules rules);

}  // namespace nibble
