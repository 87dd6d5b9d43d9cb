// Running the steps in order.
#include "tokenizer/pipeline.h"

#include <algorithm>

#include "base/error.h"
#include "tokenizer/utf8.h"

namespace nibble {

std::vector<int32_t> Pipeline::encode(std::string_view text, const EncodeOptions& options) const {
  std::string repaired;
  if (!is_valid_utf8(text)) {
    append_repaired_utf8(repaired, text);
    text = repaired;
  }
  Pieces pieces = steps_.added_tokens.split(text, steps_.normalizer.get());
  if (steps_.pre_tokenizer) steps_.pre_tokenizer->apply(pieces);
  std::vector<int32_t> ids;
  ids.reserve(pieces.pieces.size());
  for (const Piece& piece : pieces.pieces) {
    if (piece.id >= 0)
      ids.push_back(piece.id);
    else if (piece.begin < piece.end)
      steps_.model->tokenize(pieces.view(piece), ids);
  }
  return steps_.post_processor.apply(std::move(ids), options.add_special_tokens);
}

std::string Pipeline::decode(std::span<const int32_t> ids, const DecodeOptions& options) const {
  return decode_run(ids, options, {}).text;
}

DecodedRun Pipeline::decode_run(std::span<const int32_t> ids, const DecodeOptions& options,
                                RunPosition position) const {
  std::vector<std::string> tokens;
  tokens.reserve(ids.size());
  for (const int32_t id : ids) {
    if (options.skip_special_tokens && is_special(id)) continue;
    auto token = id_to_token(id);
    if (!token) fail(ErrorCode::invalid_argument, "token id {} is not in the vocabulary of {}", id, vocab_size());
    tokens.push_back(*std::move(token));
  }
  return nibble::decode_run(steps_.decoder.get(), std::move(tokens), position);
}

int32_t Pipeline::vocab_size() const {
  return std::max(steps_.model->vocabulary().id_limit(), steps_.added_tokens.id_limit());
}

std::optional<int32_t> Pipeline::token_to_id(std::string_view token) const {
  if (const auto id = steps_.added_tokens.find(token)) return id;
  return steps_.model->vocabulary().find(token);
}

std::optional<std::string> Pipeline::id_to_token(int32_t id) const {
  if (const AddedToken* added = steps_.added_tokens.find(id)) return added->content;
  const auto token = steps_.model->vocabulary().token(id);
  if (!token) return std::nullopt;
  return std::string(*token);
}

bool Pipeline::is_special(int32_t id) const {
  const AddedToken* added = steps_.added_tokens.find(id);
  return added != nullptr && added->special;
}

}  // namespace nibble
