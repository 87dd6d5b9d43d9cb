// Byte-pair encoding without a list of merges: neighbours join if the joined text is a token, best rank first.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "tokenizer/byte_trie.h"
#include "tokenizer/token_model.h"

namespace nibble {

/// A vocabulary with the order in which its tokens are made. tiktoken and SentencePiece files have no merges.
struct RankedVocabulary {
  Vocabulary vocabulary;       // every token; ids to texts
  std::vector<int32_t> ranks;  // by id: lower is joined earlier, -1 is never found in text
};

struct RankBpeOptions {
  bool start_from_bytes = false;   // tiktoken; otherwise characters
  bool whole_piece_first = false;  // a piece that is a token is that token
  std::optional<int32_t> unk_id;   // one for each run of unknown symbols
  bool byte_fallback = false;      // unknown symbols become <0x00>..<0xFF>
  std::vector<int32_t> frozen;     // tokens that are taken whole (the longest first) and never joined
};

class RankBpe final : public TokenModel {
 public:
  /// Errors: corrupt_file if byte_fallback lacks a byte.
  RankBpe(RankedVocabulary vocabulary, const RankBpeOptions& options, std::string_view source);

  /// Errors: corrupt_file for an unknown symbol without unk_id.
  void tokenize(std::string_view piece, std::vector<int32_t>& ids) const override;
  const Vocabulary& vocabulary() const override { return ranked_.vocabulary; }

 private:
  struct Symbol;
  std::optional<int32_t> find(std::string_view text) const;
  std::vector<Symbol> split_into_symbols(std::string_view piece) const;
  /// Whether `right` can never be joined to `left`, so that what lies on both sides can be merged by itself.
  bool is_border(std::string_view piece, const Symbol& left, const Symbol& right) const;
  void merge_short(std::string_view piece, std::span<Symbol> symbols) const;
  void merge_long(std::string_view piece, std::span<Symbol> symbols) const;

  RankedVocabulary ranked_;
  RankBpeOptions options_;
  ByteTrie frozen_;
  std::vector<int32_t> byte_ids_;
  bool words_apart_ = false;  // no token has a space mark behind another character
};

}  // namespace nibble
