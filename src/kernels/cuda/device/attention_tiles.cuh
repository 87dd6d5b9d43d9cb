// What attention on wgmma and its gradient share beside the products: rings, tiles by the copy engine, the team's
// barrier, and sums packed to bf16.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

namespace nibble::kernels::cuda {

/// A ring's place and how often it has come round.
template <int kStages>
struct RingTurn {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

/// Copies a tile of a head, from `row` on, in swizzled panels of 64 columns.
template <int kDim>
__device__ __forceinline__ void copy_panels(uint32_t to, uint32_t panel_bytes, const CUtensorMap& map, int row,
                                            int head, uint32_t barrier) {
#pragma unroll
  for (int panel = 0; panel < kDim / 64; ++panel)
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
        "[%5];" ::"r"(to + panel * panel_bytes),
        "l"(&map), "r"(panel * 64), "r"(row), "r"(head), "r"(barrier)
        : "memory");
}

/// Of the 128 threads of a team.
__device__ __forceinline__ void team_barrier(int team) { asm volatile("bar.sync %0, 128;" ::"r"(team + 1) : "memory"); }

__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <int kPairs>
__device__ __forceinline__ void pack(const float (&from)[2 * kPairs], uint32_t (&to)[kPairs]) {
#pragma unroll
  for (int i = 0; i < kPairs; ++i) to[i] = pack_pair(from[2 * i], from[2 * i + 1]);
}

}  // namespace nibble::kernels::cuda
