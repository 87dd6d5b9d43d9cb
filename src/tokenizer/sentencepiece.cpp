// SentencePiece's ModelProto: pieces, the model's kind, the normalizer.
#include "tokenizer/sentencepiece.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "tokenizer/protobuf.h"
#include "tokenizer/rank_bpe.h"
#include "tokenizer/sentencepiece_normalizer.h"
#include "tokenizer/tokenizer_json.h"
#include "tokenizer/unigram.h"
#include "tokenizer/utf8.h"

namespace nibble {

namespace {

enum PieceType : int64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };
constexpr int64_t kUnigramModel = 1;
constexpr int64_t kBpeModel = 2;

struct SentencePiece {
  std::string text;
  float score = 0;
  int64_t type = kNormal;
};

struct ModelFile {
  std::vector<SentencePiece> pieces;
  int64_t model_type = kUnigramModel;
  bool byte_fallback = false;
  std::string bos_piece = "<s>";
  std::string eos_piece = "</s>";
  SentencePieceRules rules;
};

SentencePiece read_piece(std::string_view bytes, std::string_view source) {
  SentencePiece piece;
  ProtobufReader reader(bytes, source);
  while (reader.next()) {
    if (reader.field() == 1)
      piece.text = reader.text();
    else if (reader.field() == 2)
      piece.score = reader.real();
    else if (reader.field() == 3)
      piece.type = reader.integer();
  }
  if (!is_valid_utf8(piece.text)) fail(ErrorCode::corrupt_file, "{}: a piece is no UTF-8", source);
  if (std::isnan(piece.score)) fail(ErrorCode::corrupt_file, "{}: the score of piece '{}' is NaN", source, piece.text);
  return piece;
}

void read_trainer(std::string_view bytes, ModelFile& file, std::string_view source) {
  ProtobufReader reader(bytes, source);
  while (reader.next()) {
    switch (reader.field()) {
      case 3:
        file.model_type = reader.integer();
        break;
      case 24:
        file.rules.whitespace_as_suffix = reader.boolean();
        break;
      case 35:
        file.byte_fallback = reader.boolean();
        break;
      case 46:
        file.bos_piece = reader.text();
        break;
      case 47:
        file.eos_piece = reader.text();
        break;
      default:
        break;
    }
  }
}

void read_normalizer(std::string_view bytes, SentencePieceRules& rules, std::string_view source) {
  ProtobufReader reader(bytes, source);
  while (reader.next()) {
    switch (reader.field()) {
      case 2:
        if (!reader.text().empty()) rules.charsmap.emplace(reader.text(), source);
        break;
      case 3:
        rules.add_dummy_prefix = reader.boolean();
        break;
      case 4:
        rules.remove_extra_whitespaces = reader.boolean();
        break;
      case 5:
        rules.escape_whitespaces = reader.boolean();
        break;
      default:
        break;
    }
  }
}

ModelFile read_file(std::string_view bytes, std::string_view source) {
  ModelFile file;
  ProtobufReader reader(bytes, source);
  while (reader.next()) {
    if (reader.field() == 1)
      file.pieces.push_back(read_piece(reader.text(), source));
    else if (reader.field() == 2)
      read_trainer(reader.text(), file, source);
    else if (reader.field() == 3)
      read_normalizer(reader.text(), file.rules, source);
  }
  if (file.pieces.empty()) fail(ErrorCode::corrupt_file, "{}: no SentencePiece pieces", source);
  if (file.pieces.size() > static_cast<size_t>(kMaxTokenId)) {
    fail(ErrorCode::corrupt_file, "{}: {} pieces, expected at most {}", source, file.pieces.size(), kMaxTokenId);
  }
  return file;
}

std::optional<int32_t> find_unknown(const ModelFile& file) {
  for (size_t i = 0; i < file.pieces.size(); ++i) {
    if (file.pieces[i].type == kUnknown) return static_cast<int32_t>(i);
  }
  return std::nullopt;
}

bool is_found_in_text(const SentencePiece& piece) { return piece.type == kNormal || piece.type == kUserDefined; }

std::unique_ptr<TokenModel> make_bpe(const ModelFile& file, std::string_view source) {
  std::vector<float> scores;
  RankBpeOptions options;
  RankedVocabulary ranked;
  for (size_t i = 0; i < file.pieces.size(); ++i) {
    const SentencePiece& piece = file.pieces[i];
    if (piece.type == kUnused)
      fail(ErrorCode::unsupported, "{}: unused piece {} in a BPE model is not supported", source, i);
    ranked.vocabulary.insert(piece.text, static_cast<int64_t>(i), source);
    if (piece.type == kUserDefined) options.frozen.push_back(static_cast<int32_t>(i));
    if (is_found_in_text(piece)) scores.push_back(piece.score);
  }
  // Pieces with equal scores share a rank: of those the leftmost is joined first.
  std::sort(scores.begin(), scores.end(), std::greater<>());
  for (const SentencePiece& piece : file.pieces) {
    const auto place = std::lower_bound(scores.begin(), scores.end(), piece.score, std::greater<>()) - scores.begin();
    ranked.ranks.push_back(is_found_in_text(piece) ? static_cast<int32_t>(place) : -1);
  }
  options.unk_id = find_unknown(file);
  options.byte_fallback = file.byte_fallback;
  return std::make_unique<RankBpe>(std::move(ranked), options, source);
}

std::unique_ptr<TokenModel> make_unigram(const ModelFile& file, std::string_view source) {
  float lowest = 0;
  float highest = 0;
  bool any = false;
  for (const SentencePiece& piece : file.pieces) {
    if (piece.type != kNormal) continue;
    lowest = any ? std::min(lowest, piece.score) : piece.score;
    highest = any ? std::max(highest, piece.score) : piece.score;
    any = true;
  }
  std::vector<UnigramPiece> pieces;
  for (const SentencePiece& piece : file.pieces) {
    double score = piece.score;
    if (piece.type == kUserDefined) score = static_cast<float>(piece.text.size()) * highest - 0.1;
    pieces.push_back({piece.text, score, is_found_in_text(piece)});
  }
  UnigramOptions options;
  options.unk_id = find_unknown(file);
  options.byte_fallback = file.byte_fallback;
  options.single_precision = true;
  options.lowest_score = lowest;
  return std::make_unique<Unigram>(std::move(pieces), options, source);
}

}  // namespace

PipelineSteps read_sentencepiece(std::string_view bytes, const SentencePieceOptions& options, std::string_view source) {
  ModelFile file = read_file(bytes, source);
  if (file.model_type != kUnigramModel && file.model_type != kBpeModel) {
    fail(ErrorCode::unsupported, "{}: SentencePiece model type {} is not supported (1: Unigram, 2: BPE)", source,
         file.model_type);
  }
  PipelineSteps steps;
  steps.model = file.model_type == kBpeModel ? make_bpe(file, source) : make_unigram(file, source);
  std::vector<AddedToken> added;
  for (const SentencePiece& piece : file.pieces) {
    if (piece.type == kUserDefined) file.rules.user_defined.push_back(piece.text);
    if (piece.type != kControl && piece.type != kUnknown) continue;
    AddedToken token;
    token.content = piece.text;
    token.normalized = false;
    token.special = true;
    added.push_back(std::move(token));
  }
  added.insert(added.end(), options.added_tokens.begin(), options.added_tokens.end());
  std::vector<int32_t> before;
  std::vector<int32_t> after;
  const auto& vocabulary = steps.model->vocabulary();
  if (const auto id = vocabulary.find(file.bos_piece); id && options.add_bos) before.push_back(*id);
  if (const auto id = vocabulary.find(file.eos_piece); id && options.add_eos) after.push_back(*id);
  steps.post_processor = PostProcessor(std::move(before), std::move(after));
  steps.decoder = make_sentencepiece_decoder(file.rules.add_dummy_prefix);
  steps.normalizer = make_sentencepiece_normalizer(std::move(file.rules));
  steps.added_tokens = AddedTokens(number_added_tokens(std::move(added), vocabulary), steps.normalizer.get(), source);
  return steps;
}

}  // namespace nibble
