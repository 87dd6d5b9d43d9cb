// Where 64 elements lie in four vectors on their way through lanes, and the permutations of bytes that follow from it.
#pragma once

#include <cstdint>

namespace nibble::kernels::cpu::NIBBLE_ISA {

struct BytePermutation {
  alignas(64) uint8_t from[64];
};

/// In order; or paired: of 32 elements the even ones, then the odd ones, as the halves of dwords come apart.
template <bool kIsPaired>
struct LaneOrder {
  static constexpr int vector_of(int element) { return kIsPaired ? element / 32 * 2 + element % 2 : element / 16; }
  static constexpr int lane_of(int element) { return kIsPaired ? element % 32 / 2 : element % 16; }
  static constexpr int place_of(int element) { return 16 * vector_of(element) + lane_of(element); }

  /// What look_up() needs so that vector q has its elements: byte 16 l + 4 q + j from that of vector q, lane 4 l + j.
  static constexpr BytePermutation spread() {
    BytePermutation order{};
    for (int e = 0; e < 64; ++e)
      order.from[16 * (lane_of(e) / 4) + 4 * vector_of(e) + lane_of(e) % 4] = static_cast<uint8_t>(e);
    return order;
  }
  /// Back from the order in which packing words, then bytes, leaves vectors whose words were merged in pairs.
  static constexpr BytePermutation packed() {
    BytePermutation order{};
    for (int e = 0; e < 64; ++e)
      order.from[e] = static_cast<uint8_t>(16 * (lane_of(e) / 4) + 8 * (vector_of(e) / 2) + 2 * (lane_of(e) % 4) +
                                           vector_of(e) % 2);
    return order;
  }
  /// The third bytes of the dwords of two vectors: bit 6 says of the second one.
  static constexpr BytePermutation thirds() {
    BytePermutation order{};
    for (int e = 0; e < 32; ++e) order.from[e] = static_cast<uint8_t>(64 * vector_of(e) + 4 * lane_of(e) + 2);
    return order;
  }
};

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
