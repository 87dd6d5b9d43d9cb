// Joining neighbouring byte ranges word by word: a scan for short words, a heap over a linked list for long ones.
#include "tokenizer/rank_bpe.h"

#include <algorithm>
#include <queue>
#include <utility>

#include "base/error.h"
#include "tokenizer/utf8.h"

namespace nibble {

namespace {

constexpr std::string_view kMark = "\xE2\x96\x81";

/// Whether a space mark stands behind something else than a space mark.
bool has_inner_mark(std::string_view token) {
  size_t at = 0;
  while (token.substr(at).starts_with(kMark)) at += kMark.size();
  return token.find(kMark, at) != std::string_view::npos;
}

}  // namespace

// A range of the piece; empty once it is joined to its left neighbour. merge_long links the symbols by prev and next;
// merge_short keeps in prev the rank of the join with the right neighbour, -1 where there is none.
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
  words_apart_ = !options_.start_from_bytes;  // else a token could end inside a mark
  for (int32_t id = 0; words_apart_ && id < ranked_.vocabulary.id_limit(); ++id) {
    const std::string_view token = ranked_.vocabulary.token(id).value_or("");
    if (ranked_.ranks[static_cast<size_t>(id)] < 0 || frozen_.longest_prefix(token).length == token.size()) continue;
    words_apart_ = !has_inner_mark(token);
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
    symbols.push_back({at, at + length, -1, -1, frozen.length > 0});
    at += length;
  }
  return symbols;
}

bool RankBpe::is_border(std::string_view piece, const Symbol& left, const Symbol& right) const {
  if (left.frozen || right.frozen) return true;
  return words_apart_ && piece.substr(right.begin).starts_with(kMark) && !piece.substr(0, left.end).ends_with(kMark);
}

void RankBpe::merge_short(std::string_view piece, std::span<Symbol> symbols) const {
  size_t count = symbols.size();
  const auto look_up = [&](size_t at) {
    symbols[at].prev = -1;
    if (at + 1 == count) return;
    const auto id = find(piece.substr(symbols[at].begin, symbols[at + 1].end - symbols[at].begin));
    if (id) symbols[at].prev = ranked_.ranks[static_cast<size_t>(*id)];
  };
  for (size_t i = 0; i < count; ++i) look_up(i);
  while (true) {
    size_t best = count;
    for (size_t i = 0; i < count; ++i) {
      if (symbols[i].prev >= 0 && (best == count || symbols[i].prev < symbols[best].prev)) best = i;
    }
    if (best == count) return;
    symbols[best].end = symbols[best + 1].end;
    const auto gone = symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1;
    std::move(gone + 1, symbols.begin() + static_cast<std::ptrdiff_t>(count), gone);
    --count;
    symbols[count].begin = symbols[count].end;
    look_up(best);
    if (best > 0) look_up(best - 1);
  }
}

void RankBpe::merge_long(std::string_view piece, std::span<Symbol> symbols) const {
  struct Candidate {
    int32_t rank;
    int32_t left;
    size_t size;
    bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
  };
  std::priority_queue<Candidate> queue;
  const auto symbol = [&](int32_t at) -> Symbol& { return symbols[static_cast<size_t>(at)]; };
  const auto offer = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    const size_t size = symbol(right).end - symbol(left).begin;
    const auto id = find(piece.substr(symbol(left).begin, size));
    if (id) queue.push({ranked_.ranks[static_cast<size_t>(*id)], left, size});
  };
  const auto count = static_cast<int32_t>(symbols.size());
  for (int32_t i = 0; i < count; ++i) {
    symbol(i).prev = i - 1;
    symbol(i).next = i + 1 < count ? i + 1 : -1;
  }
  for (int32_t i = 0; i + 1 < count; ++i) offer(i, i + 1);
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
  constexpr size_t kShort = 48;
  for (size_t first = 0; first < symbols.size();) {
    size_t last = first + 1;
    while (last < symbols.size() && !is_border(piece, symbols[last - 1], symbols[last])) ++last;
    const std::span<Symbol> word = std::span(symbols).subspan(first, last - first);
    if (word.size() <= kShort)
      merge_short(piece, word);
    else
      merge_long(piece, word);
    first = last;
  }
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
