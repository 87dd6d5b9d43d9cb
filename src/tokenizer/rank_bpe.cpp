// Joining neighbours through a heap over a linked list of byte ranges.
#include "tokenizer/rank_bpe.h"

#include <algorithm>
#include <queue>
#include <utility>

#include "base/error.h"
#include "tokenizer/utf8.h"

namespace nibble {

// A range of the piece; empty once it is joined to its left neighbour.
struct RankBpe::Symbol {
  size_t begin;
  size_t end;
  int32_t prev;
  int32_t next;
  bool frozen;
};

RankBpe::RankBpe(RankedVocabulary vocabulary, const RankBpeOptions& options, std::string_view source)
    : ranked_(std::move(vocabulary)), options_(options) {
  ranked_.ranks.resize(static_cast<size_t>(ranked_.vocabulary.id_limit()), -1);
  for (const int32_t id : options_.frozen) frozen_.insert(ranked_.vocabulary.token(id).value_or(""), id);
  for (int byte = 0; options_.byte_fallback && byte < 256; ++byte) {
    const auto id = ranked_.vocabulary.find(fmt::format("<0x{:02X}>", byte));
    if (!id) fail(ErrorCode::corrupt_file, "{}: byte fallback without a token for byte {}", source, byte);
    byte_ids_.push_back(*id);
  }
}

std::optional<int32_t> RankBpe::find(std::string_view text) const {
  const auto id = ranked_.vocabulary.find(text);
  return id && ranked_.ranks[static_cast<size_t>(*id)] >= 0 ? id : std::nullopt;
}

std::vector<RankBpe::Symbol> RankBpe::split_into_symbols(std::string_view piece) const {
  std::vector<Symbol> symbols;
  for (size_t at = 0; at < piece.size();) {
    const ByteTrie::Longest frozen = frozen_.longest_prefix(piece.substr(at));
    size_t length = frozen.length;
    if (length == 0) length = options_.start_from_bytes ? 1 : utf8_length(static_cast<unsigned char>(piece[at]));
    const auto index = static_cast<int32_t>(symbols.size());
    symbols.push_back({at, at + length, index - 1, index + 1, frozen.length > 0});
    at += length;
  }
  if (!symbols.empty()) symbols.back().next = -1;
  return symbols;
}

void RankBpe::merge(std::string_view piece, std::vector<Symbol>& symbols) const {
  struct Candidate {
    int32_t rank;
    int32_t left;
    size_t size;
    bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
  };
  std::priority_queue<Candidate> queue;
  const auto symbol = [&](int32_t at) -> Symbol& { return symbols[static_cast<size_t>(at)]; };
  const auto offer = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0 || symbol(left).frozen || symbol(right).frozen) return;
    const size_t size = symbol(right).end - symbol(left).begin;
    const auto id = find(piece.substr(symbol(left).begin, size));
    if (id) queue.push({ranked_.ranks[static_cast<size_t>(*id)], left, size});
  };
  for (size_t i = 0; i + 1 < symbols.size(); ++i) offer(static_cast<int32_t>(i), static_cast<int32_t>(i) + 1);
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbol(top.left);
    if (left.begin == left.end || left.next < 0) continue;
    Symbol& right = symbol(left.next);
    if (right.end - left.begin != top.size) continue;  // one of the two has grown since
    left.end = right.end;
    right.begin = right.end;
    left.next = right.next;
    if (left.next >= 0) symbol(left.next).prev = top.left;
    offer(left.prev, top.left);
    offer(top.left, left.next);
  }
}

void RankBpe::tokenize(std::string_view piece, std::vector<int32_t>& ids) const {
  if (options_.whole_piece_first) {
    if (const auto id = find(piece)) {
      ids.push_back(*id);
      return;
    }
  }
  std::vector<Symbol> symbols = split_into_symbols(piece);
  merge(piece, symbols);
  bool after_unknown = false;
  for (const Symbol& symbol : symbols) {
    if (symbol.begin == symbol.end) continue;
    const std::string_view text = piece.substr(symbol.begin, symbol.end - symbol.begin);
    const auto id = find(text);
    if (id) {
      ids.push_back(*id);
    } else if (!byte_ids_.empty()) {
      for (const char c : text) ids.push_back(byte_ids_[static_cast<unsigned char>(c)]);
    } else if (!options_.unk_id) {
      fail(ErrorCode::corrupt_file, "a character is not in the vocabulary, which has no unknown token");
    } else if (!after_unknown) {
      ids.push_back(*options_.unk_id);
    }
    after_unknown = !id;
  }
}

}  // namespace nibble
