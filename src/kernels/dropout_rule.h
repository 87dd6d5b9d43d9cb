// Which elements dropout keeps: a counter-based rule, so that every backend and every pass makes the same choice.
#pragma once

#include <cstdint>

namespace nibble::kernels {

/// A word of random bits for the number `index` under `seed`: the finalizer of SplitMix64 over their mix (Steele et
/// al., 2014).
[[gnu::always_inline]] static inline constexpr uint64_t dropout_word(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/// Of four neighbouring positions each has 16 bits of one word: below this number, an element is left out.
[[gnu::always_inline]] static inline constexpr uint32_t dropout_limit(float p) {
  return static_cast<uint32_t>(p * 65536.0f + 0.5f);
}

[[gnu::always_inline]] static inline constexpr bool dropout_keeps(uint64_t seed, uint64_t index, float p) {
  return (dropout_word(seed, index / 4) >> (index % 4 * 16) & 0xffff) >= dropout_limit(p);
}

}  // namespace nibble::kernels
