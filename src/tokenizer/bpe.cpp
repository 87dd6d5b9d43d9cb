// Merging: a scan for short pieces, a heap over a linked list for long ones; both take the lowest rank, leftmost first.
#include "tokenizer/bpe.h"

#include <algorithm>
#include <queue>

#include "base/error.h"
#include "tokenizer/utf8.h"

namespace nibble {

void MergeTable::reserve(size_t count) {
  size_t size = 16;
  while (size < 2 * count) size *= 2;
  if (size <= slots_.size()) return;
  std::vector<Slot> old(size);
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (slot.pair != kEmpty) slots_[find_slot(slot.pair)] = slot;
  }
}

size_t MergeTable::find_slot(uint64_t pair) const {
  const size_t mask = slots_.size() - 1;
  uint64_t hash = pair * 0x9E3779B97F4A7C15u;
  hash ^= hash >> 32;
  size_t at = hash & mask;
  while (slots_[at].pair != kEmpty && slots_[at].pair != pair) at = (at + 1) & mask;
  return at;
}

void MergeTable::insert(int32_t left, int32_t right, Merge merge) {
  reserve(count_ + 1);
  const uint64_t pair = uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  Slot& slot = slots_[find_slot(pair)];
  count_ += slot.pair == kEmpty;
  slot = {pair, merge};
}

const MergeTable::Merge* MergeTable::find(int32_t left, int32_t right) const {
  if (slots_.empty()) return nullptr;
  const Slot& slot = slots_[find_slot(uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right))];
  return slot.pair == kEmpty ? nullptr : &slot.merge;
}

// A token under construction; an unlinked symbol has id -1. prev and next are only kept by merge_long.
struct Bpe::Symbol {
  int32_t id;
  int32_t prev = -1;
  int32_t next = -1;
};

Bpe::Bpe(Vocabulary vocabulary, std::span<const TextPair> merges, BpeOptions options, std::string_view source)
    : vocabulary_(std::move(vocabulary)), options_(std::move(options)) {
  merges_.reserve(merges.size());
  std::string joined;
  const auto id_of = [&](std::string_view token, size_t rank) {
    const auto id = vocabulary_.find(token);
    if (!id)
      fail(ErrorCode::corrupt_file, "{}: merge {} needs the token '{}', which is not in the vocabulary", source, rank,
           token);
    return *id;
  };
  int32_t last = -1;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto [left, right] = merges[rank];
    const size_t prefix = options_.continuing_subword_prefix.size();
    if (right.size() < prefix)
      fail(ErrorCode::corrupt_file, "{}: merge {}: '{}' lacks the subword prefix", source, rank, right);
    joined.assign(left);
    joined.append(right.substr(prefix));
    // Trainers number tokens in the order of their merges: mostly no search is needed.
    last = vocabulary_.is(last + 1, joined) ? last + 1 : id_of(joined, rank);
    merges_.insert(id_of(left, rank), id_of(right, rank), {static_cast<int32_t>(rank), last});
  }
  if (options_.unk_token) unk_id_ = vocabulary_.find(*options_.unk_token);
  if (options_.byte_fallback) {
    for (int byte = 0; byte < 256; ++byte)
      byte_ids_.push_back(vocabulary_.find(fmt::format("<0x{:02X}>", byte)).value_or(-1));
  }
  for (char32_t c = 0; c < 0x800; ++c) {
    std::string character;
    append_utf8(character, c);
    two_byte_ids_.push_back(vocabulary_.find(character).value_or(-1));
  }
}

std::optional<int32_t> Bpe::find_character(std::string_view character, bool first, bool last) const {
  const bool prefixed = !first && !options_.continuing_subword_prefix.empty();
  const bool suffixed = last && !options_.end_of_word_suffix.empty();
  if (prefixed || suffixed) {
    std::string token = prefixed ? options_.continuing_subword_prefix : "";
    token.append(character);
    if (suffixed) token.append(options_.end_of_word_suffix);
    return vocabulary_.find(token);
  }
  if (character.size() > 2) return vocabulary_.find(character);
  const int32_t id = two_byte_ids_[front_code_point(character).value];
  return id < 0 ? std::nullopt : std::optional(id);
}

void Bpe::split_into_symbols(std::string_view piece, std::vector<Symbol>& symbols) const {
  bool unk_pending = false;
  for (size_t at = 0; at < piece.size();) {
    const size_t length = utf8_length(static_cast<unsigned char>(piece[at]));
    const std::string_view character = piece.substr(at, length);
    const bool first = at == 0;
    at += length;
    if (const auto id = find_character(character, first, at == piece.size())) {
      if (std::exchange(unk_pending, false)) symbols.push_back({*unk_id_});
      symbols.push_back({*id});
      continue;
    }
    if (options_.byte_fallback) {
      // The bytes include prefix and suffix, and do not end a run of unknown characters: so does the reference.
      std::string token = first ? "" : options_.continuing_subword_prefix;
      token.append(character);
      if (at == piece.size()) token.append(options_.end_of_word_suffix);
      const auto id_of = [&](char c) { return byte_ids_[static_cast<unsigned char>(c)]; };
      if (std::all_of(token.begin(), token.end(), [&](char c) { return id_of(c) >= 0; })) {
        for (const char c : token) symbols.push_back({id_of(c)});
        continue;
      }
    }
    if (!options_.unk_token) continue;
    if (!unk_id_) fail(ErrorCode::corrupt_file, "unknown token '{}' is not in the vocabulary", *options_.unk_token);
    if (unk_pending && !options_.fuse_unk) symbols.push_back({*unk_id_});
    unk_pending = true;
  }
  if (unk_pending) symbols.push_back({*unk_id_});
}

void Bpe::merge_short(std::vector<Symbol>& symbols) const {
  // prev holds the rank of the merge with the right neighbour, next what it makes; -1 where there is none.
  const auto look_up = [&](size_t at) {
    const MergeTable::Merge* merge =
        at + 1 < symbols.size() ? merges_.find(symbols[at].id, symbols[at + 1].id) : nullptr;
    symbols[at].prev = merge != nullptr ? merge->rank : -1;
    symbols[at].next = merge != nullptr ? merge->id : -1;
  };
  for (size_t i = 0; i < symbols.size(); ++i) look_up(i);
  while (true) {
    size_t best = symbols.size();
    for (size_t i = 0; i < symbols.size(); ++i) {
      if (symbols[i].prev >= 0 && (best == symbols.size() || symbols[i].prev < symbols[best].prev)) best = i;
    }
    if (best == symbols.size()) return;
    symbols[best].id = symbols[best].next;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    look_up(best);
    if (best > 0) look_up(best - 1);
  }
}

void Bpe::merge_long(std::vector<Symbol>& symbols) const {
  struct Candidate {
    int32_t rank;
    int32_t at;
    int32_t id;
    bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
  };
  std::vector<Candidate> storage;
  storage.reserve(symbols.size());
  std::priority_queue<Candidate> queue(std::less<Candidate>{}, std::move(storage));
  const auto symbol = [&](int32_t at) -> Symbol& { return symbols[static_cast<size_t>(at)]; };
  const auto offer = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return;
    if (const auto* merge = merges_.find(symbol(left).id, symbol(right).id)) queue.push({merge->rank, left, merge->id});
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
    Symbol& left = symbol(top.at);
    if (left.id < 0 || left.next < 0) continue;
    Symbol& right = symbol(left.next);
    const MergeTable::Merge* merge = merges_.find(left.id, right.id);
    if (merge == nullptr || merge->id != top.id) continue;  // one of the two has grown since
    left.id = top.id;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) symbol(left.next).prev = top.at;
    offer(left.prev, top.at);
    offer(top.at, left.next);
  }
  std::erase_if(symbols, [](const Symbol& s) { return s.id < 0; });
}

void Bpe::tokenize(std::string_view piece, std::vector<int32_t>& ids) const {
  if (options_.ignore_merges) {
    if (const auto id = vocabulary_.find(piece)) {
      ids.push_back(*id);
      return;
    }
  }
  constexpr size_t kShort = 48;
  thread_local std::vector<Symbol> symbols;
  symbols.clear();
  split_into_symbols(piece, symbols);
  if (symbols.size() <= kShort)
    merge_short(symbols);
  else
    merge_long(symbols);
  for (const Symbol& symbol : symbols) ids.push_back(symbol.id);
  if (symbols.capacity() > (size_t{1} << 20)) std::vector<Symbol>().swap(symbols);
}

}  // namespace nibble
