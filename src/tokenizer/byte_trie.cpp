// Building and searching the trie.
#include "tokenizer/byte_trie.h"

namespace nibble {

int32_t ByteTrie::add_child(int32_t node, unsigned char byte) {
  if (const int32_t known = child(node, byte); known >= 0) return known;
  const auto fresh = static_cast<int32_t>(values_.size());
  values_.push_back(-1);
  if (node == 0) {
    root_[byte] = fresh;
    return fresh;
  }
  if (slots_.size() < 2 * (edges_ + 1)) {
    std::vector<Slot> old(slots_.empty() ? 256 : slots_.size() * 2);
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.key != 0) slots_[find_slot(slot.key)] = slot;
    }
  }
  const uint64_t key = (uint64_t{static_cast<uint32_t>(node)} << 8 | byte) + 1;
  slots_[find_slot(key)] = {key, fresh};
  ++edges_;
  return fresh;
}

void ByteTrie::insert(std::string_view key, int32_t value) {
  int32_t node = 0;
  for (const char c : key) node = add_child(node, static_cast<unsigned char>(c));
  if (node != 0) values_[static_cast<size_t>(node)] = value;
}

ByteTrie::Longest ByteTrie::longest_prefix(std::string_view text) const {
  Longest longest{0, -1};
  each_prefix(text, [&](size_t length, int32_t value) { longest = {length, value}; });
  return longest;
}

}  // namespace nibble
