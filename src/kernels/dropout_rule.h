// Which elements dropout keeps: a counter-based rule, so that every backend and every pass makes the same choice.
#pragma once

#include <cstdint>

namespace nibble::kernels {

/// A word for position `index` under `seed`: the finalizer of SplitMix64 over their mix (Steele et al., 2014).
[[gnu::always_inline]] static inline uint64_t dropout_word(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/// 24 bits decide, so that the rule is the same wherever p is a float.
[[gnu::always_inline]] static inline bool dropout_keeps(uint64_t seed, uint64_t index, float p) {
  return static_cast<float>(dropout_word(seed, index) >> 40) >= p * 16777216.0f;
}

}  // namespace nibble::kernels
