// Byte-pair encoding: pieces start as characters and grow by the merge of lowest rank.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/token_model.h"

namespace nibble {

struct BpeOptions {
  std::optional<std::string> unk_token;
  std::string continuing_subword_prefix;
  std::string end_of_word_suffix;
  bool fuse_unk = false;
  bool byte_fallback = false;  // a character that is no token becomes its bytes <0x00>..<0xFF>
  bool ignore_merges = false;  // a piece that is a token is that token
};

/// From a pair of ids to what they become. Open addressing; ids are below 2^23.
class MergeTable {
 public:
  struct Merge {
    int32_t rank;
    int32_t id;
  };
  void reserve(size_t count);
  /// A pair that is there already gets the new merge.
  void insert(int32_t left, int32_t right, Merge merge);
  const Merge* find(int32_t left, int32_t right) const;

 private:
  struct Slot {
    uint64_t pair = kEmpty;
    Merge merge{};
  };
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  size_t find_slot(uint64_t pair) const;
  std::vector<Slot> slots_;
  size_t count_ = 0;
};

class Bpe final : public TokenModel {
 public:
  using TextPair = std::pair<std::string_view, std::string_view>;
  /// Errors: corrupt_file (with `source`) for a merge whose parts or result are no tokens.
  Bpe(Vocabulary vocabulary, std::span<const TextPair> merges, BpeOptions options, std::string_view source);

  void tokenize(std::string_view piece, std::vector<int32_t>& ids) const override;
  const Vocabulary& vocabulary() const override { return vocabulary_; }

 private:
  struct Symbol;
  void split_into_symbols(std::string_view piece, std::vector<Symbol>& symbols) const;
  std::optional<int32_t> find_character(std::string_view character, bool first, bool last) const;
  void merge_short(std::vector<Symbol>& symbols) const;
  void merge_long(std::vector<Symbol>& symbols) const;

  Vocabulary vocabulary_;
  BpeOptions options_;
  MergeTable merges_;
  std::optional<int32_t> unk_id_;
  std::vector<int32_t> byte_ids_;      // of <0x00>..<0xFF>, -1 where missing; empty without byte_fallback
  std::vector<int32_t> two_byte_ids_;  // of the characters below U+0800 by code point, -1 where missing
};

}  // namespace nibble
