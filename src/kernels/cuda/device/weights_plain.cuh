// Weights that need no decoding, for few rows of x: bf16 and f16 as they lie; LLM.int8() builds on it.
#pragma once

#include "kernels/cuda/device/few_rows.cuh"

namespace nibble::kernels::cuda {

/// How 16 bytes a lane of sixteen rows become two products; rows of a multiple of 16 bytes.
template <int kElementBytes>
class FewRowsPlain {
 public:
  static constexpr bool kCanGate = false;
  static constexpr int kRowBytes = 128;  // of one piece
  static constexpr int kChunk = kRowBytes / kElementBytes;
  static constexpr int kXPadding = 64 / kElementBytes;  // rows of x start 64 bytes apart, modulo all banks
  static constexpr int kSlotBytes = 16 * kRowBytes;
  static constexpr int64_t kMaxCols = int64_t{1} << 30;

  __device__ explicit FewRowsPlain(int lane) : lane_(lane), group_(lane / 4), quad_(lane % 4) {}

  /// The copies go on to another tile.
  __device__ __forceinline__ void enter(const FewRowsArgs& args, int tile) {
    const DeviceJob& job = args.jobs.of_tile(tile);
    const int first = (tile - job.first_tile) * kFewRowsTile, last = job.rows - 1;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      rows_[half] =
          job.weight.data + int64_t{min(first + group_ + 8 * half, last)} * args.cols * kElementBytes + quad_ * 16;
  }

  __device__ __forceinline__ void prefetch(const FewRowsArgs& args, uint32_t slot, int chunk) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int at = chunk * kRowBytes + part * 64;
      const bool is_inside = at + quad_ * 16 < args.cols * kElementBytes;
#pragma unroll
      for (int half = 0; half < 2; ++half)
        copy_async_16(slot + (part * 2 + half) * 512 + lane_ * 16, rows_[half] + (is_inside ? at : 0),
                      is_inside ? 16 : 0);
    }
  }

  __device__ __forceinline__ void load_scales(const FewRowsArgs&, int) {}
  __device__ static void load_norm(const FewRowsArgs&) {}

 protected:
  /// This lane's 16 bytes: columns part * kChunk / 2 + quad * 16 / kElementBytes and on, of row group + 8 * half.
  __device__ __forceinline__ uint4 load(uint32_t slot, int part, int half) const {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(slot + (part * 2 + half) * 512 + lane_ * 16));
    return v;
  }

  int lane_, group_, quad_;
  const uint8_t* rows_[2];
};

template <typename T>
class FewRowsDense : public FewRowsPlain<2> {
 public:
  using X = T;
  using Sum = float;
  using Shared = FewRowsShared<FewRowsDense>;
  using FewRowsPlain<2>::FewRowsPlain;

  static int extra_bytes(int64_t) { return 0; }
  __device__ static void prepare(const FewRowsArgs& args, const Shared& shared, int padded) {
    stage_rounded(args, shared.x, padded);
  }
  __device__ __forceinline__ void store_scales(const FewRowsArgs&, const Shared&, int, int) const {}
  __device__ __forceinline__ void begin() {
#pragma unroll
    for (float& value : total_) value = 0;
  }
  __device__ __forceinline__ void multiply(const FewRowsArgs&, const Shared&, uint32_t slot, const T* x, int chunk,
                                           int) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const uint4 xs = *reinterpret_cast<const uint4*>(x + chunk * kChunk + part * (kChunk / 2) + quad_ * 8);
      const uint4 upper = load(slot, part, 0), lower = load(slot, part, 1);
      mma_16<T>(total_, upper.x, lower.x, upper.y, lower.y, xs.x, xs.y);
      mma_16<T>(total_, upper.z, lower.z, upper.w, lower.w, xs.z, xs.w);
    }
  }
  __device__ __forceinline__ float sum(int i) const { return total_[i]; }
  __device__ __forceinline__ void end(const FewRowsArgs&, const Shared&, int, int) const {}
  __device__ __forceinline__ float finish(const FewRowsArgs&, const Shared&, const DeviceJob&, int, int, int, int,
                                          float sum) const {
    return sum;
  }

 private:
  float total_[4];
};

}  // namespace nibble::kernels::cuda
