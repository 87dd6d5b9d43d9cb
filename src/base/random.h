// A seeded generator whose sequence is part of the product: the same seed gives the same text on every machine.
#pragma once

#include <cstdint>

namespace nibble {

/// xoshiro256** seeded through splitmix64 (Blackman and Vigna, 2018). Not for cryptography.
class Random {
 public:
  explicit Random(uint64_t seed);
  uint64_t next();
  /// Uniform in [0, 1), 53 bits.
  double uniform();
  /// Standard normal (Box-Muller, one value a call).
  double normal();

 private:
  uint64_t state_[4];
};

}  // namespace nibble
