// The Unigram language model: the segmentation with the highest sum of log probabilities.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/byte_trie.h"
#include "tokenizer/token_model.h"

namespace nibble {

struct UnigramPiece {
  std::string text;
  double score = 0;
  bool matchable = true;  // false: never found in text (control and unknown pieces of SentencePiece)
};

struct UnigramOptions {
  std::optional<int64_t> unk_id;
  bool byte_fallback = false;     // an unknown run becomes its bytes <0x00>..<0xFF>
  bool single_precision = false;  // add scores in float, as SentencePiece does
  double lowest_score = 0;        // with single_precision: of the normal pieces; an unknown character scores 10 less
};

class Unigram final : public TokenModel {
 public:
  /// The id of a piece is its index. Errors: corrupt_file (with `source`).
  Unigram(std::vector<UnigramPiece> pieces, const UnigramOptions& options, std::string_view source);

  void tokenize(std::string_view piece, std::vector<int32_t>& ids) const override;
  const Vocabulary& vocabulary() const override { return vocabulary_; }

 private:
  template <typename Score>
  void find_best_path(std::string_view piece, std::vector<int32_t>& ids) const;
  void append_unknown(std::string_view text, std::vector<int32_t>& ids) const;

  Vocabulary vocabulary_;
  ByteTrie trie_;
  std::vector<double> scores_;
  double unk_score_ = 0;
  std::optional<int32_t> unk_id_;
  std::vector<int32_t> byte_ids_;  // of <0x00>..<0xFF>; empty unless all are there and byte_fallback is set
  bool single_precision_ = false;
};

}  // namespace nibble
