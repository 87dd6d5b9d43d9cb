// Viterbi over the pieces that match at each position.
#include "tokenizer/unigram.h"

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "tokenizer/utf8.h"

namespace nibble {

namespace {

constexpr size_t kNone = ~size_t{0};

// The best way to get to a position: the piece that ends there, and the score from the beginning.
template <typename Score>
struct PathNode {
  Score score = 0;
  size_t start = kNone;
  int32_t id = -1;
};

}  // namespace

Unigram::Unigram(std::vector<UnigramPiece> pieces, const UnigramOptions& options, std::string_view source)
    : single_precision_(options.single_precision) {
  double lowest = std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < pieces.size(); ++i) {
    const UnigramPiece& piece = pieces[i];
    vocabulary_.insert(piece.text, static_cast<int64_t>(i), source);
    if (piece.matchable) trie_.insert(piece.text, static_cast<int32_t>(i));
    scores_.push_back(piece.score);
    lowest = std::min(lowest, piece.score);
  }
  constexpr double kUnkPenalty = 10;
  unk_score_ = (single_precision_ ? options.lowest_score : lowest) - kUnkPenalty;
  if (options.unk_id) {
    if (*options.unk_id < 0 || static_cast<size_t>(*options.unk_id) >= pieces.size()) {
      fail(ErrorCode::corrupt_file, "{}: unk_id {} is not in a vocabulary of {}", source, *options.unk_id,
           pieces.size());
    }
    unk_id_ = static_cast<int32_t>(*options.unk_id);
  }
  if (!options.byte_fallback) return;
  for (int byte = 0; byte < 256; ++byte) {
    const auto id = vocabulary_.find(fmt::format("<0x{:02X}>", byte));
    byte_ids_.push_back(id.value_or(-1));
  }
}

void Unigram::append_unknown(std::string_view text, std::vector<int32_t>& ids) const {
  const auto byte_id = [&](char c) { return byte_ids_[static_cast<unsigned char>(c)]; };
  if (!byte_ids_.empty() && std::all_of(text.begin(), text.end(), [&](char c) { return byte_id(c) >= 0; })) {
    for (const char c : text) ids.push_back(byte_id(c));
    return;
  }
  ids.push_back(*unk_id_);
}

template <typename Score>
void Unigram::find_best_path(std::string_view piece, std::vector<int32_t>& ids) const {
  using Node = PathNode<Score>;
  std::vector<Node> best(piece.size() + 1);
  const auto offer = [&best](size_t start, size_t end, int32_t id, Score score) {
    Node& node = best[end];
    if (node.start == kNone || score > node.score) node = {score, start, id};
  };
  for (size_t at = 0; at < piece.size();) {
    const size_t length = utf8_length(static_cast<unsigned char>(piece[at]));
    const Score here = best[at].score;
    bool single = false;
    trie_.each_prefix(piece.substr(at), [&](size_t end, int32_t id) {
      offer(at, at + end, id, static_cast<Score>(scores_[static_cast<size_t>(id)]) + here);
      single |= end == length;
    });
    if (!single) {
      if (!unk_id_)
        fail(ErrorCode::corrupt_file, "a character is not in the vocabulary and the Unigram model has no unk_id");
      offer(at, at + length, *unk_id_, static_cast<Score>(unk_score_) + here);
    }
    at += length;
  }
  // Backwards from the end; neighbouring unknown characters become one unknown piece.
  struct Part {
    size_t start;
    size_t end;
    int32_t id;
  };
  std::vector<Part> parts;
  for (size_t end = piece.size(); end > 0;) {
    const Node& node = best[end];
    if (unk_id_ && node.id == *unk_id_ && !parts.empty() && parts.back().id == *unk_id_)
      parts.back().start = node.start;
    else
      parts.push_back({node.start, end, node.id});
    end = node.start;
  }
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    if (unk_id_ && part->id == *unk_id_)
      append_unknown(piece.substr(part->start, part->end - part->start), ids);
    else
      ids.push_back(part->id);
  }
}

void Unigram::tokenize(std::string_view piece, std::vector<int32_t>& ids) const {
  if (single_precision_)
    find_best_path<float>(piece, ids);
  else
    find_best_path<double>(piece, ids);
}

}  // namespace nibble
