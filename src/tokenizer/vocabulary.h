// The two-way table between token texts and ids, built for fast loading: one text arena and one flat hash table.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nibble {

/// Ids above this are refused: real vocabularies have fewer than a million tokens, and tables by id are as long as the
/// largest id however few tokens there are.
constexpr int64_t kMaxTokenId = (int64_t{1} << 21) - 1;

class Vocabulary {
 public:
  /// Adds a token. A text that is there already gets the new id. Errors: corrupt_file for an id out of range.
  void insert(std::string_view token, int64_t id, std::string_view source);
  std::optional<int32_t> find(std::string_view token) const;
  std::optional<std::string_view> token(int32_t id) const;
  /// Whether find(token) is `id`, without a search.
  bool is(int32_t id, std::string_view token) const;
  /// Distinct texts.
  size_t size() const { return entries_.size(); }
  /// One more than the largest id.
  int32_t id_limit() const { return static_cast<int32_t>(by_id_.size()); }

 private:
  struct Entry {
    size_t offset;
    uint32_t length;
    int32_t id;
  };
  std::string_view text(const Entry& entry) const {
    return std::string_view(arena_).substr(entry.offset, entry.length);
  }
  /// Slot of `token`, or the empty slot where it belongs.
  size_t find_slot(std::string_view token, uint32_t hash) const;
  void grow();

  struct Slot {
    uint32_t hash = 0;
    int32_t entry = -1;
  };
  std::string arena_;
  std::vector<Entry> entries_;
  std::vector<int32_t> by_id_;  // id -> entry, -1 where there is a gap
  std::vector<Slot> slots_;     // a power of two, at most half full
};

}  // namespace nibble
