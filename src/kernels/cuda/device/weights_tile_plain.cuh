// Weights that tile.cuh multiplies as they lie: bf16 and f16, and LLM.int8().
#pragma once

#include "kernels/cuda/device/weights_tile.cuh"

namespace nibble::kernels::cuda {

/// Rows of a multiple of 16 bytes, kPieces times 64 bytes of a row a chunk: 16 bytes of each of them for a thread.
template <int kElementBytes>
class TilePlain : public TileStream {
 public:
  static constexpr int kPieces = kTileChunk * kElementBytes / 64;
  static constexpr int kThreadBytes = 2 * kPieces * 16;
  static constexpr int kTableBytes = 0;
  static constexpr int kStages = 3;
  static constexpr int kHalves = 2;

  __device__ TilePlain(uint32_t ring, uint32_t, int tile_rows, int threads) : TileStream(ring, tile_rows, threads) {}

  __device__ static void fill_table(const TileArgs&, uint8_t*, int) {}

  __device__ __forceinline__ void start(const TileArgs& args, const TileRange& range) {
    begin(args, range);
    if (left_ > 0) enter_tile(args);
#pragma unroll 1
    for (int s = 0; s < kStages - 1; ++s) prefetch(args);
  }

  __device__ __forceinline__ void take() {
    wait_copies<kStages - 2>();
    const uint32_t slot = ring_ + reading_ * threads_ * kThreadBytes;
    reading_ = reading_ + 1 == kStages ? 0 : reading_ + 1;
#pragma unroll
    for (int i = 0; i < 2 * kPieces; ++i) pieces_[i] = load_shared_16(slot + (i * threads_ + thread_) * 16);
  }

  __device__ __forceinline__ void prefetch(const TileArgs& args) {
    if (left_ > 0) {
      const uint32_t slot = ring_ + filling_ * threads_ * kThreadBytes + thread_ * 16;
#pragma unroll
      for (int i = 0; i < 2 * kPieces; ++i) {
        const int at = (chunk_ * kPieces + i / 2) * 64;
        const bool is_inside = at + static_cast<int>(thread_ % 4) * 16 < args.cols * kElementBytes;
        copy_async_16(slot + i * threads_ * 16, rows_[i % 2] + (is_inside ? at : 0), is_inside ? 16 : 0);
      }
      if (advance(args)) enter_tile(args);
    }
    commit_copies();
    filling_ = filling_ + 1 == kStages ? 0 : filling_ + 1;
  }

  /// A quarter (16 bits) or half (8 bits) of the chunk's steps at 16 bytes of a row: words 0, 1 and 2, 3 are a step
  /// each.
  template <int kSteps>
  __device__ __forceinline__ void decode(int half, uint32_t (&fragments)[kSteps][4]) const {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int piece = (half * kSteps + step) / 2;
      const uint4 upper = pieces_[2 * piece], lower = pieces_[2 * piece + 1];
      fragments[step][0] = step % 2 ? upper.z : upper.x;
      fragments[step][1] = step % 2 ? lower.z : lower.x;
      fragments[step][2] = step % 2 ? upper.w : upper.y;
      fragments[step][3] = step % 2 ? lower.w : lower.y;
    }
  }

 private:
  __device__ __forceinline__ void enter_tile(const TileArgs& args) {
    const DeviceJob* job;
    const int first = enter(args, job);
#pragma unroll
    for (int r = 0; r < 2; ++r)
      rows_[r] =
          job->weight.data + int64_t{min(first + 8 * r, job->rows - 1)} * args.cols * kElementBytes + thread_ % 4 * 16;
  }

  const uint8_t* rows_[2];
  uint4 pieces_[2 * kPieces];
};

template <typename T>
class TileDense : public TilePlain<2> {
 public:
  using X = T;
  using Acc = float;
  static constexpr int kXBytes = 128;
  using TilePlain<2>::TilePlain;

  template <int kCount>
  __device__ static void store(const TileArgs& args, const DeviceJob& job, int row, int first,
                               const float (&sums)[kCount]) {
    store_sums(args, job, row, first, sums, [](float sum, int, int) { return sum; });
  }
};

}  // namespace nibble::kernels::cuda
