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
  static constexpr int kChunk = 128;                  // columns: 64 bytes of a row
  static constexpr int kXPadding = 8;                 // rows of x start 16 bytes apart, modulo all banks
  static constexpr int kTableRow = 256;               // so that one byte permutation makes an address
  static constexpr int kPairBytes = 256 * kTableRow;  // a pair of T for each byte, a copy for each lane in half a row
  static constexpr int kTableBytes = kPairBytes + (kNested ? kMaxJobs * 1024 : 0);
  static constexpr int kCodeBytes = 16 * 64;
  static constexpr int kSlotBytes = kCodeBytes + 128 * (kNested ? 2 : 1);

  __device__ explicit FewRows4Bit(int lane) : lane_(lane), group_(lane / 4), quad_(lane % 4) {}

  __device__ static void fill_table(const FewRowsArgs& args, uint8_t* shared) {
    for (int i = threadIdx.x; i < 256 * 8; i += blockDim.x) {
      const int byte = i / 8, piece = (i + byte) % 8;  // rotated: neighbours write to different banks
      const T pair[2] = {from_float<T>(args.book[byte / 16]), from_float<T>(args.book[byte % 16])};
      const uint32_t word = *reinterpret_cast<const uint32_t*>(pair);
      *reinterpret_cast<uint4*>(shared + byte * kTableRow + piece * 16) = make_uint4(word, word, word, word);
    }
    if constexpr (kNested) {
      float* books = reinterpret_cast<float*>(shared + kPairBytes);
      for (int i = threadIdx.x; i < 256 * args.jobs.count; i += blockDim.x)
        books[i] = args.jobs.jobs[i / 256].weight.absmax.nested_code_book[i % 256];
    }
  }

  __device__ static void stage_x(const FewRowsArgs& args, T* x, int padded) { stage_rounded(args, x, padded); }

  /// The copies go on to another tile.
  __device__ __forceinline__ void enter(const FewRowsArgs& args, int tile) {
    const DeviceJob& job = args.jobs.of_tile(tile);
    const int first = (tile - job.first_tile) * kFewRowsTile, last = job.rows - 1;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      codes_[half] = job.weight.data + (int64_t{min(first + group_ + 8 * half, last)} * args.cols >> 1) + quad_ * 16;
    // A lane brings one scale: of row lane / 2, block lane % 2 of the chunk.
    unit_ = scale_unit(args, job, tile);
    unit_shift_ = job.weight.block_shift - 6;
    if constexpr (kNested) {
      scales_ = job.weight.absmax.codes;
      groups_ = job.weight.absmax.nested_absmax;
      blocks_ = static_cast<uint32_t>((int64_t{job.rows} * args.cols - 1) >> job.weight.block_shift) + 1;
    } else {
      scales_ = reinterpret_cast<const uint8_t*>(job.weight.absmax.values);
    }
  }

  __device__ __forceinline__ void prefetch(const FewRowsArgs& args, uint32_t slot, int chunk) {
    const bool is_inside = chunk * kChunk + quad_ * 32 < args.cols;
    const int valid = is_inside ? 16 : 0, at = is_inside ? chunk * 64 : 0;
    // A row's 64 bytes in two halves, swapped in every second pair of rows: eight rows are read without conflicts.
    const uint32_t to = slot + group_ * 64 + (((quad_ >> 1) ^ (group_ >> 1 & 1)) * 32) + (quad_ & 1) * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half) copy_async_16(to + half * 512, codes_[half] + at, valid);
    const bool has_scale = chunk * kChunk + (lane_ & 1) * 64 < args.cols;
    const uint32_t block = (unit_ + (has_scale ? chunk * 2 : 0)) >> unit_shift_;
    if constexpr (kNested) {
      const uint32_t word = block & ~3u;
      copy_async_4(slot + kCodeBytes + 4 * lane_, scales_ + word, static_cast<int>(min(4u, blocks_ - word)));
      copy_async_4(slot + kCodeBytes + 128 + 4 * lane_, groups_ + (block >> 8), 4);
    } else {
      copy_async_4(slot + kCodeBytes + 4 * lane_, scales_ + uint64_t{block} * 4, 4);
    }
  }

  /// The products go on to another tile.
  __device__ __forceinline__ void begin(const FewRowsArgs& args, int tile) {
#pragma unroll
    for (float& value : total_) value = 0;
    if constexpr (kNested) {
      const DeviceJob& job = args.jobs.of_tile(tile);
      own_unit_ = scale_unit(args, job, tile);
      own_shift_ = job.weight.block_shift - 6;
      offset_ = job.weight.absmax.offset;
      book_ = kPairBytes + 1024 * static_cast<int>(&job - args.jobs.jobs);
    }
  }

  __device__ __forceinline__ void multiply(const FewRowsArgs& args, uint32_t slot, const T* x, int chunk) {
    const float scale = own_scale(args, slot, chunk);
    const uint32_t from = slot + group_ * 64 + quad_ * 8;
    const T* columns = x + chunk * kChunk + quad_ * 16;
    float sums[2][4];
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      const uint32_t at = from + ((block ^ (group_ >> 1 & 1)) * 32);
      const uint2 upper = load_8(at), lower = load_8(at + 512);
#pragma unroll
      for (float& value : sums[block]) value = 0;
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        const uint4 xs = *reinterpret_cast<const uint4*>(columns + block * 64 + pair * 8);
        const uint32_t u = pair ? upper.y : upper.x, l = pair ? lower.y : lower.x;
        mma_16<T>(sums[block], look_up<0>(u), look_up<0>(l), look_up<1>(u), look_up<1>(l), xs.x, xs.y);
        mma_16<T>(sums[block], look_up<2>(u), look_up<2>(l), look_up<3>(u), look_up<3>(l), xs.z, xs.w);
      }
    }
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      const float upper_scale = __shfl_sync(kFullMask, scale, 2 * group_ + block);
      const float lower_scale = __shfl_sync(kFullMask, scale, 2 * group_ + 16 + block);
      total_[0] = fmaf(upper_scale, sums[block][0], total_[0]);
      total_[1] = fmaf(upper_scale, sums[block][1], total_[1]);
      total_[2] = fmaf(lower_scale, sums[block][2], total_[2]);
      total_[3] = fmaf(lower_scale, sums[block][3], total_[3]);
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

  /// The pair of byte kByte: its number above this lane's place in a row.
  template <int kByte>
  __device__ __forceinline__ uint32_t look_up(uint32_t word) const {
    extern __shared__ __align__(128) uint8_t shared[];
    return *reinterpret_cast<const uint32_t*>(shared + __byte_perm(word, 4 * lane_, 0x5504 | kByte << 4));
  }

  /// Runs of 64 columns before this lane's scale in the tile's first chunk.
  __device__ __forceinline__ uint32_t scale_unit(const FewRowsArgs& args, const DeviceJob& job, int tile) const {
    const int row = min((tile - job.first_tile) * kFewRowsTile + lane_ / 2, job.rows - 1);
    return static_cast<uint32_t>(row) * static_cast<uint32_t>(args.cols >> 6) + (lane_ & 1);
  }

  /// The absmax of row lane / 2, block lane % 2 of the chunk; 0 past the last column, where weights are not read.
  __device__ __forceinline__ float own_scale(const FewRowsArgs& args, uint32_t slot, int chunk) const {
    const uint32_t word = load_4(slot + kCodeBytes + 4 * lane_);
    float scale = __uint_as_float(word);
    if constexpr (kNested) {
      extern __shared__ __align__(128) uint8_t shared[];
      const uint32_t block = (own_unit_ + chunk * 2) >> own_shift_;
      const uint32_t code = word >> (8 * (block & 3)) & 255;
      scale = nested_value(*reinterpret_cast<const float*>(shared + book_ + 4 * code),
                           __uint_as_float(load_4(slot + kCodeBytes + 128 + 4 * lane_)), offset_);
    }
    return chunk * kChunk + (lane_ & 1) * 64 < args.cols ? scale : 0.0f;
  }

  int lane_, group_, quad_;
  // of the copies
  const uint8_t* codes_[2];
  const uint8_t* scales_;
  const float* groups_;
  uint32_t unit_, unit_shift_, blocks_;
  // of the products
  float total_[4];
  uint32_t own_unit_, own_shift_, book_;
  float offset_;
};

}  // namespace nibble::kernels::cuda
