// Greedy matching from the left; a word with an unmatched rest is unknown as a whole.
#include "tokenizer/wordpiece.h"

#include "base/error.h"
#include "tokenizer/utf8.h"

namespace nibble {

namespace {

int32_t unknown_id(const Vocabulary& vocabulary, const std::string& token) {
  const auto id = vocabulary.find(token);
  if (!id) fail(ErrorCode::corrupt_file, "unknown token '{}' is not in the vocabulary", token);
  return *id;
}

}  // namespace

void WordPiece::tokenize(std::string_view piece, std::vector<int32_t>& ids) const {
  if (static_cast<int64_t>(count_code_points(piece)) > max_word_characters_) {
    ids.push_back(unknown_id(vocabulary_, unk_token_));
    return;
  }
  const size_t first = ids.size();
  std::string candidate;
  for (size_t start = 0; start < piece.size();) {
    size_t end = piece.size();
    std::optional<int32_t> id;
    while (start < end) {
      candidate.assign(start > 0 ? std::string_view(prefix_) : std::string_view());
      candidate.append(piece.substr(start, end - start));
      id = vocabulary_.find(candidate);
      if (id) break;
      end = start + last_character_start(piece.substr(start, end - start));
    }
    if (!id) {
      ids.resize(first);
      ids.push_back(unknown_id(vocabulary_, unk_token_));
      return;
    }
    ids.push_back(*id);
    start = end;
  }
}

void WordLevel::tokenize(std::string_view piece, std::vector<int32_t>& ids) const {
  const auto id = vocabulary_.find(piece);
  ids.push_back(id ? *id : unknown_id(vocabulary_, unk_token_));
}

}  // namespace nibble
