// A set of byte strings with values, walked byte by byte: added tokens, Unigram pieces, user-defined symbols.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace nibble {

class ByteTrie {
 public:
  ByteTrie() : values_(1, -1) {}
  /// A key that is there already gets the new value (>= 0).
  void insert(std::string_view key, int32_t value);
  bool empty() const { return values_.size() == 1; }

  struct Longest {
    size_t length;
    int32_t value;  // -1: no key is a prefix
  };
  /// Longest key that `text` starts with; the empty key is never found.
  Longest longest_prefix(std::string_view text) const;

  /// Calls visit(length, value) for every key that `text` starts with, shortest first.
  template <typename Visit>
  void each_prefix(std::string_view text, Visit&& visit) const {
    int32_t node = 0;
    for (size_t i = 0; i < text.size(); ++i) {
      node = child(node, static_cast<unsigned char>(text[i]));
      if (node < 0) return;
      if (const int32_t value = values_[static_cast<size_t>(node)]; value >= 0) visit(i + 1, value);
    }
  }

 private:
  struct Slot {
    uint64_t key = 0;  // (node << 8 | byte) + 1; 0 is empty
    int32_t child = 0;
  };
  int32_t child(int32_t node, unsigned char byte) const {
    if (node == 0) return root_[byte];
    if (slots_.empty()) return -1;
    const Slot& slot = slots_[find_slot((uint64_t{static_cast<uint32_t>(node)} << 8 | byte) + 1)];
    return slot.key == 0 ? -1 : slot.child;
  }
  size_t find_slot(uint64_t key) const {
    const size_t mask = slots_.size() - 1;
    uint64_t hash = key * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
    size_t at = hash & mask;
    while (slots_[at].key != 0 && slots_[at].key != key) at = (at + 1) & mask;
    return at;
  }
  int32_t add_child(int32_t node, unsigned char byte);

  std::vector<int32_t> values_;  // by node, -1 where no key ends
  std::vector<int32_t> root_ = std::vector<int32_t>(256, -1);
  std::vector<Slot> slots_;  // edges below the root
  size_t edges_ = 0;
};

}  // namespace nibble
