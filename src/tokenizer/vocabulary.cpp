// Open addressing over token texts.
#include "tokenizer/vocabulary.h"

#include <functional>

#include "base/error.h"

namespace nibble {

namespace {

uint32_t hash_of(std::string_view token) {
  const uint64_t hash = std::hash<std::string_view>{}(token);
  return static_cast<uint32_t>(hash ^ (hash >> 32));
}

}  // namespace

size_t Vocabulary::find_slot(std::string_view token, uint32_t hash) const {
  const size_t mask = slots_.size() - 1;
  for (size_t at = hash & mask;; at = (at + 1) & mask) {
    const Slot& slot = slots_[at];
    if (slot.entry < 0) return at;
    if (slot.hash == hash && text(entries_[static_cast<size_t>(slot.entry)]) == token) return at;
  }
}

void Vocabulary::grow() {
  std::vector<Slot> old(slots_.empty() ? 1024 : slots_.size() * 2);
  old.swap(slots_);
  const size_t mask = slots_.size() - 1;
  for (const Slot& slot : old) {
    if (slot.entry < 0) continue;
    size_t at = slot.hash & mask;
    while (slots_[at].entry >= 0) at = (at + 1) & mask;
    slots_[at] = slot;
  }
}

void Vocabulary::insert(std::string_view token, int64_t id, std::string_view source) {
  if (id < 0 || id > kMaxTokenId) {
    fail(ErrorCode::corrupt_file, "{}: token id {} is not in 0..{}", source, id, kMaxTokenId);
  }
  if (slots_.size() < 2 * (entries_.size() + 1)) grow();
  const uint32_t hash = hash_of(token);
  Slot& slot = slots_[find_slot(token, hash)];
  if (slot.entry < 0) {
    slot = {hash, static_cast<int32_t>(entries_.size())};
    entries_.push_back({arena_.size(), static_cast<uint32_t>(token.size()), static_cast<int32_t>(id)});
    arena_.append(token);
  }
  entries_[static_cast<size_t>(slot.entry)].id = static_cast<int32_t>(id);
  if (by_id_.size() <= static_cast<size_t>(id)) by_id_.resize(static_cast<size_t>(id) + 1, -1);
  by_id_[static_cast<size_t>(id)] = slot.entry;
}

std::optional<int32_t> Vocabulary::find(std::string_view token) const {
  if (slots_.empty()) return std::nullopt;
  const Slot& slot = slots_[find_slot(token, hash_of(token))];
  if (slot.entry < 0) return std::nullopt;
  return entries_[static_cast<size_t>(slot.entry)].id;
}

std::optional<std::string_view> Vocabulary::token(int32_t id) const {
  if (id < 0 || id >= id_limit() || by_id_[static_cast<size_t>(id)] < 0) return std::nullopt;
  return text(entries_[static_cast<size_t>(by_id_[static_cast<size_t>(id)])]);
}

bool Vocabulary::is(int32_t id, std::string_view token) const {
  if (id < 0 || id >= id_limit() || by_id_[static_cast<size_t>(id)] < 0) return false;
  const Entry& entry = entries_[static_cast<size_t>(by_id_[static_cast<size_t>(id)])];
  return entry.id == id && text(entry) == token;
}

}  // namespace nibble
