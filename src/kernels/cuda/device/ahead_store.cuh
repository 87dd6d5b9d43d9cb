// The end of a tile of ahead_4bit.cuh: sums of two warp groups as wgmma leaves them to y.
#pragma once

#include "kernels/cuda/device/ahead_decode.cuh"

namespace nibble::kernels::cuda {

/// A thread's sums are those of rows i and 8 on of y, columns n, n + 1 and every eighth pair on.
__device__ __forceinline__ void add_bias(const float* bias, int rows, int n, float (&sums)[128]) {
#pragma unroll
  for (int j = 0; j < 32; ++j)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float value = n + 8 * j + c < rows ? __ldg(bias + n + 8 * j + c) : 0.0f;
      sums[4 * j + c] += value, sums[4 * j + 2 + c] += value;
    }
}

/// A box of shared memory, swizzled, to a described matrix; what lies outside is left out.
__device__ __forceinline__ void store_box(const CUtensorMap& map, int column, int row, uint32_t from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(
                   reinterpret_cast<uint64_t>(&map)),
               "r"(column), "r"(row), "r"(from)
               : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/// Until all but the last kPending boxes that this thread stores have left shared memory.
template <int kPending>
__device__ __forceinline__ void wait_boxes() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

/// A warp group's 64 rows of x from i on by 256 columns of y from n on, in bf16, by the copy engine: through the stage
/// that both groups multiplied last, of which a group has room for three boxes of 64 columns.
__device__ __forceinline__ void store_boxes(const CUtensorMap& y, int n, int i, const float (&sums)[128],
                                            uint32_t stage, int group) {
  constexpr int kBox = 64 * 128;
  const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % 32, matrix = lane / 8, r = lane % 8;
  const auto place = [&](int box) {
    return box % 3 == 0 ? stage + group * kBox
                        : stage + AheadTile::kXBytes + group * AheadTile::kHalfBytes + (box % 3 - 1) * kBox;
  };
  const uint32_t own = (thread / 32 * 16 + matrix % 2 * 8 + r) * 128 + (matrix / 2 ^ r) * 16;
  const auto group_waits = [&] { asm volatile("bar.sync %0, 128;" ::"r"(group + 2) : "memory"); };
  asm volatile("bar.sync 1, 256;" ::: "memory");  // both groups have read the stage
#pragma unroll
  for (int box = 0; box < 4; ++box) {
    if (box == 3) {
      if (thread == 0) wait_boxes<2>();
      group_waits();
    }
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      uint32_t words[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float* pair = sums + 32 * box + 4 * (j + k / 2) + 2 * (k % 2);
        words[k] = round_pair<__nv_bfloat16>(pair[0], pair[1]);
      }
      asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(place(box) + (own ^ j * 16)),
                   "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
                   : "memory");
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    group_waits();
    if (thread == 0) store_box(y, (n + 64 * box) * 2, i, place(box));
  }
  if (thread == 0) wait_boxes<0>();
  group_waits();
}

}  // namespace nibble::kernels::cuda
