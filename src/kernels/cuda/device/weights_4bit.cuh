// 4-bit weights for few rows of x: byte by byte through a table of value pairs; absmax multiplies each block's sum.
#pragma once

#include "kernels/cuda/device/absmax.cuh"
#include "kernels/cuda/device/few_rows.cuh"

namespace nibble::kernels::cuda {

/// Blocks of 64 or more, a power of two; cols a multiple of 64. kNested: absmax is 8-bit codes.
template <typename T, bool kNested>
class FewRows4Bit {
 public:
  using X = T;
  static constexpr int kChunk = 128;               // columns: 64 bytes of a row
  static constexpr int kPairBytes = 256 * 32 * 4;  // a pair of T for each byte, a copy for each lane
  static constexpr int kTableBytes = kPairBytes + (kNested ? kMaxJobs * 1024 : 0);
  static constexpr int kXPadding = 8;              // rows of x start 16 bytes apart, modulo all banks
  static constexpr int kCodeBytes = 16 * 64;
  static constexpr int kSlotBytes = kCodeBytes + 128 * (kNested ? 2 : 1);

  __device__ FewRows4Bit(const uint8_t* shared, int lane)
      : lane_(lane), group_(lane / 4), quad_(lane % 4), table_(shared + 4 * lane) {}

  __device__ static void fill_table(const FewRowsArgs& args, uint8_t* shared) {
    for (int i = threadIdx.x; i < 256 * 8; i += blockDim.x) {
      const int byte = i / 8, piece = (i + byte) % 8;  // rotated: neighbours write to different banks
      const T pair[2] = {from_float<T>(args.book[byte / 16]), from_float<T>(args.book[byte % 16])};
      const uint32_t word = *reinterpret_cast<const uint32_t*>(pair);
      reinterpret_cast<uint4*>(shared)[byte * 8 + piece] = make_uint4(word, word, word, word);
    }
    if constexpr (kNested) {
      float* books = reinterpret_cast<float*>(shared + kPairBytes);
      for (int i = threadIdx.x; i < 256 * args.jobs.count; i += blockDim.x)
        books[i] = args.jobs.jobs[i / 256].weight.absmax.nested_code_book[i % 256];
    }
  }

  __device__ static void stage_x(const FewRowsArgs& args, T* x, int padded) { stage_rounded(args, x, padded); }

  __device__ __forceinline__ void begin(const FewRowsArgs& args, int tile) {
#pragma unroll
    for (float& value : total_) value = 0;
    if constexpr (kNested) {
      const DeviceJob& job = args.jobs.of_tile(tile);
      const int row = min((tile - job.first_tile) * kFewRowsTile + lane_ / 2, job.rows - 1);
      first_element_ = int64_t{row} * args.cols + (lane_ & 1) * 64;
      block_shift_ = job.weight.block_shift;
      offset_ = job.weight.absmax.offset;
      book_ = table_ + kPairBytes - 4 * lane_ + 1024 * static_cast<int>(&job - args.jobs.jobs);
    }
  }

  __device__ __forceinline__ void prefetch(const FewRowsArgs& args, uint32_t slot, int tile, int chunk) {
    const DeviceJob& job = args.jobs.of_tile(tile);
    const int first = (tile - job.first_tile) * kFewRowsTile, last = job.rows - 1;
    const int column = chunk * kChunk + quad_ * 32;
    const int valid = column < args.cols ? 16 : 0;
    // A row's 64 bytes in two halves, swapped in every second pair of rows: eight rows are read without conflicts.
    const uint32_t to = slot + group_ * 64 + (((quad_ >> 1) ^ (group_ >> 1 & 1)) * 32) + (quad_ & 1) * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = min(first + group_ + 8 * half, last);
      copy_async_16(to + half * 512, job.weight.data + ((int64_t{row} * args.cols + (valid ? column : 0)) >> 1), valid);
    }
    const int scale_row = min(first + lane_ / 2, last);  // a lane brings one scale: row lane / 2, block lane % 2
    const int scale_column = min(chunk * kChunk + (lane_ & 1) * 64, args.cols - 64);
    const int64_t block = (int64_t{scale_row} * args.cols + scale_column) >> job.weight.block_shift;
    const Absmax& absmax = job.weight.absmax;
    if constexpr (kNested) {
      const uint8_t* word = absmax.codes + (block & ~int64_t{3});
      const int64_t blocks = ((int64_t{job.rows} * args.cols - 1) >> job.weight.block_shift) + 1;
      copy_async_4(slot + kCodeBytes + 4 * lane_, word, static_cast<int>(min(int64_t{4}, blocks - (block & ~int64_t{3}))));
      copy_async_4(slot + kCodeBytes + 128 + 4 * lane_, absmax.nested_absmax + (block >> 8), 4);
    } else {
      copy_async_4(slot + kCodeBytes + 4 * lane_, absmax.values + block, 4);
    }
  }

  __device__ __forceinline__ void multiply(const FewRowsArgs& args, uint32_t slot, const T* x, int chunk) {
    const float scale = own_scale(args, slot, chunk);
    const uint32_t from = slot + group_ * 64 + quad_ * 8;
    const T* columns = x + chunk * kChunk + quad_ * 16;
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      const uint32_t at = from + ((block ^ (group_ >> 1 & 1)) * 32);
      const uint2 upper = load_8(at), lower = load_8(at + 512);
      float sums[4] = {0, 0, 0, 0};
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        const uint4 xs = *reinterpret_cast<const uint4*>(columns + block * 64 + pair * 8);
        const uint32_t u = pair ? upper.y : upper.x, l = pair ? lower.y : lower.x;
        mma_16<T>(sums, look_up<0>(table_, u), look_up<0>(table_, l), look_up<1>(table_, u), look_up<1>(table_, l), xs.x, xs.y);
        mma_16<T>(sums, look_up<2>(table_, u), look_up<2>(table_, l), look_up<3>(table_, u), look_up<3>(table_, l), xs.z, xs.w);
      }
      const float upper_scale = __shfl_sync(kFullMask, scale, 2 * group_ + block);
      const float lower_scale = __shfl_sync(kFullMask, scale, 2 * group_ + 16 + block);
      total_[0] = fmaf(upper_scale, sums[0], total_[0]);
      total_[1] = fmaf(upper_scale, sums[1], total_[1]);
      total_[2] = fmaf(lower_scale, sums[2], total_[2]);
      total_[3] = fmaf(lower_scale, sums[3], total_[3]);
    }
  }

  __device__ __forceinline__ float sum(int i) const { return total_[i]; }

  __device__ __forceinline__ float finish(const FewRowsArgs& args, const DeviceJob&, int, int, float sum) const {
    return sum * args.book_scale;
  }

 private:
  __device__ __forceinline__ static uint2 load_8(uint32_t address) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
    return v;
  }
  __device__ __forceinline__ static uint32_t load_4(uint32_t address) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
    return v;
  }

  /// The pair of byte kByte; a table row is 128 bytes.
  template <int kByte>
  __device__ __forceinline__ static uint32_t look_up(const uint8_t* table, uint32_t word) {
    const uint32_t offset = (kByte == 0 ? word << 7 : word >> (8 * kByte - 7)) & 0x7f80u;
    return *reinterpret_cast<const uint32_t*>(table + offset);
  }

  /// The absmax of row lane / 2, block lane % 2 of the chunk; 0 past the last column, where weights are not read.
  __device__ __forceinline__ float own_scale(const FewRowsArgs& args, uint32_t slot, int chunk) const {
    const uint32_t word = load_4(slot + kCodeBytes + 4 * lane_);
    const int column = chunk * kChunk + (lane_ & 1) * 64;
    float scale = __uint_as_float(word);
    if constexpr (kNested) {
      const int64_t block = (first_element_ + chunk * kChunk) >> block_shift_;
      const uint32_t code = word >> (8 * (block & 3)) & 255;
      scale = nested_value(reinterpret_cast<const float*>(book_)[code],
                           __uint_as_float(load_4(slot + kCodeBytes + 128 + 4 * lane_)), offset_);
    }
    return column < args.cols ? scale : 0.0f;
  }

  int lane_, group_, quad_;
  const uint8_t* table_;  // of this lane
  float total_[4] = {0, 0, 0, 0};
  int64_t first_element_ = 0;  // nested: of this lane's block in the tile's first chunk
  const uint8_t* book_ = nullptr;
  float offset_ = 0;
  int block_shift_ = 0;
};

}  // namespace nibble::kernels::cuda
