// The end of a tile of turns_4bit.cuh: a warp group's sums as wgmma leaves them to y.
#pragma once

#include "kernels/cuda/device/ahead_decode.cuh"

namespace nibble::kernels::cuda {

struct TurnsTile : AheadCut<168, 3> {
  static constexpr int kStages = 5;
  static constexpr int kXBytes = 128 * 128;  // 64 columns
  static constexpr int kStageBytes = kXBytes + kChunkBytes;
  static constexpr int kTable = kStages * kStageBytes, kCopies = 16;  // of a byte's two values
  static constexpr int kResult = kTable + 256 * kCopies * 8;          // a box's
  static constexpr int kBoxColumns = kRows / 3;  // of 64 rows of x, in bf16; rows of an odd number of 16 bytes
  static constexpr int kBarriers = kResult + 64 * kBoxColumns * 2;
  static constexpr int kBytes = kBarriers + 2 * kStages * 8;
};

using TurnSums = float[2][TurnsTile::kRows / 2];  // a thread's, of two times 64 rows of x

/// A thread's sums are those of rows i and 8 on of y, columns n, n + 1 and every eighth pair on, and of 64 rows on.
__device__ __forceinline__ void add_bias(const float* bias, int rows, int n, TurnSums& sums) {
  constexpr int kRows = TurnsTile::kRows;
#pragma unroll
  for (int j = 0; j < kRows / 8; ++j)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float value = n + 8 * j + c < rows ? __ldg(bias + n + 8 * j + c) : 0.0f;
#pragma unroll
      for (int half = 0; half < 2; ++half) sums[half][4 * j + c] += value, sums[half][4 * j + 2 + c] += value;
    }
}

/// 128 rows of x from i on by kRows columns of y from n on, in bf16, by the copy engine, a box after the other. As rows
/// of a box are an odd number of 16 bytes, neighbours lie in different banks.
__device__ __forceinline__ void store_turn(const CUtensorMap& y, int n, int i, const TurnSums& sums, uint32_t room) {
  constexpr int kColumns = TurnsTile::kBoxColumns, kBlocks = kColumns / 8;
  const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % 32, matrix = lane / 8;
  const auto group_waits = [&] { asm volatile("bar.sync %0, 128;" ::"r"(threadIdx.x / 128 + 2) : "memory"); };
  const auto box_is_read = [&] {
    if (thread == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
    __syncwarp();
  };
  const uint32_t own = room + (thread / 32 * 16 + matrix % 2 * 8 + lane % 8) * (2 * kColumns) + matrix / 2 * 16;
#pragma unroll
  for (int box = 0; box < 6; ++box) {
    const float* of_box = sums[box / 3] + box % 3 * (kColumns / 2);
    if (box > 0) {
      box_is_read();
      group_waits();
    }
#pragma unroll
    for (int j = 0; j < kBlocks; j += 2) {
      uint32_t words[4];
#pragma unroll
      for (int k = 0; k < (j + 1 < kBlocks ? 4 : 2); ++k) {
        const float* pair = of_box + 4 * (j + k / 2) + 2 * (k % 2);
        words[k] = round_pair<__nv_bfloat16>(pair[0], pair[1]);
      }
      if (j + 1 < kBlocks)
        asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(own + j * 16), "r"(words[0]),
                     "r"(words[1]), "r"(words[2]), "r"(words[3])
                     : "memory");
      else
        asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1,%2};" ::"r"(own + j * 16), "r"(words[0]),
                     "r"(words[1])
                     : "memory");
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    group_waits();
    if (thread == 0) {
      asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(
                       reinterpret_cast<uint64_t>(&y)),
                   "r"(n + box % 3 * kColumns), "r"(i + 64 * (box / 3)), "r"(room)
                   : "memory");
      asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    }
  }
  box_is_read();
}

}  // namespace nibble::kernels::cuda
