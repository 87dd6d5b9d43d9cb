// WordPiece (longest match first) and WordLevel (whole words).
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/token_model.h"

namespace nibble {

class WordPiece final : public TokenModel {
 public:
  WordPiece(Vocabulary vocabulary, std::string unk_token, std::string continuing_subword_prefix,
            int64_t max_word_characters)
      : vocabulary_(std::move(vocabulary)),
        unk_token_(std::move(unk_token)),
        prefix_(std::move(continuing_subword_prefix)),
        max_word_characters_(max_word_characters) {}

  /// Errors: corrupt_file if the unknown token is needed and missing.
  void tokenize(std::string_view piece, std::vector<int32_t>& ids) const override;
  const Vocabulary& vocabulary() const override { return vocabulary_; }

 private:
  Vocabulary vocabulary_;
  std::string unk_token_;
  std::string prefix_;
  int64_t max_word_characters_;
};

class WordLevel final : public TokenModel {
 public:
  WordLevel(Vocabulary vocabulary, std::string unk_token)
      : vocabulary_(std::move(vocabulary)), unk_token_(std::move(unk_token)) {}

  /// Errors: corrupt_file if the unknown token is needed and missing.
  void tokenize(std::string_view piece, std::vector<int32_t>& ids) const override;
  const Vocabulary& vocabulary() const override { return vocabulary_; }

 private:
  Vocabulary vocabulary_;
  std::string unk_token_;
};

}  // namespace nibble
