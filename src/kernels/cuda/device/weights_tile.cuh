// Weights as tile.cuh wants them: each thread brings and decodes the values of its own two rows, through a ring in
// shared memory that no other thread reads.
#pragma once

#include "kernels/cuda/device/absmax.cuh"
#include "kernels/cuda/device/tile.cuh"

namespace nibble::kernels::cuda {

__device__ __forceinline__ uint4 load_shared_16(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
  return v;
}

__device__ __forceinline__ uint32_t load_shared_4(uint32_t address) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
  return v;
}

template <typename T>
__device__ __forceinline__ uint32_t round_pair(float low, float high) {
  if constexpr (__is_same(T, __half)) {
    const __half2 pair = __floats2half2_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
  }
}

/// The line of tiles as the copies walk it, ahead of the products.
class TileStream {
 public:
  __device__ TileStream(uint32_t ring, int tile_rows, int threads)
      : ring_(ring), tile_rows_(tile_rows), threads_(threads) {}

 protected:
  __device__ __forceinline__ void begin(const TileArgs& args, const TileRange& range) {
    at_ = range.at;
    end_ = range.end;
    tile_ = static_cast<int>(at_ / args.chunks);
    chunk_ = static_cast<int>(at_ - int64_t{tile_} * args.chunks);
  }

  /// The thread's first row in the tile that the copies go on to; the other is 8 on.
  __device__ __forceinline__ int enter(const TileArgs& args) {
    const int row_tile = tile_ / args.column_tiles;
    job_ = &args.jobs.of_tile(row_tile);
    return (row_tile - job_->first_tile) * tile_rows_ + static_cast<int>(threadIdx.x) / 32 * 16 + threadIdx.x % 32 / 4;
  }

  /// True if the copies have another tile to enter.
  __device__ __forceinline__ bool advance(const TileArgs& args) {
    ++at_;
    if (++chunk_ < args.chunks) return false;
    chunk_ = 0;
    ++tile_;
    return at_ < end_;
  }

  uint32_t ring_;
  int tile_rows_, threads_;
  int64_t at_ = 0, end_ = 0;
  int tile_ = 0, chunk_ = 0;
  const DeviceJob* job_ = nullptr;
};

/// Blocks of 32 or more, a power of two; cols a multiple of 32. Each value is rounded once, as code book times absmax.
template <typename T, bool kNested>
class Tile4Bit : public TileStream {
 public:
  using X = T;
  using Acc = float;
  static constexpr int kStages = 3;
  static constexpr int kHalves = 2;
  static constexpr int kXBytes = 128;                 // of a row of x in half a chunk
  static constexpr int kTableRow = 256;               // so that one byte permutation makes an address
  static constexpr int kPairBytes = 256 * kTableRow;  // a pair of floats for each byte, sixteen copies in half a row
  static constexpr int kTableBytes = kPairBytes + (kNested ? kMaxJobs * 1024 : 0);
  static constexpr int kThreadBytes = 32 + 8 + (kNested ? 12 : 0);

  __device__ Tile4Bit(const TileArgs&, uint32_t ring, const uint8_t* memory, int tile_rows, int threads)
      : TileStream(ring, tile_rows, threads), memory_(memory) {}

  __device__ static void fill_table(const TileArgs& args, uint8_t* memory, int threads) {
    for (int i = threadIdx.x; i < 256 * 8; i += threads) {
      const int byte = i / 8, piece = (i + byte) % 8;
      const float high = args.book[byte / 16], low = args.book[byte % 16];
      *reinterpret_cast<float4*>(memory + byte * kTableRow + piece * 16) = make_float4(high, low, high, low);
    }
    if constexpr (kNested) {
      float* books = reinterpret_cast<float*>(memory + kPairBytes);
      for (int i = threadIdx.x; i < 256 * args.jobs.count; i += threads)
        books[i] = args.jobs.jobs[i / 256].weight.absmax.nested_code_book[i % 256];
    }
  }

  __device__ __forceinline__ void start(const TileArgs& args, const TileRange& range) {
    begin(args, range);
    if (at_ < end_) enter_tile(args);
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) prefetch(args);
  }

  __device__ __forceinline__ void next(const TileArgs& args) {
    wait_copies<kStages - 2>();
    const uint32_t slot = ring_ + reading_ * threads_ * kThreadBytes;
    reading_ = reading_ + 1 == kStages ? 0 : reading_ + 1;
    const uint32_t words = slot + 32 * threads_ + 4 * threadIdx.x;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint4 codes = load_shared_16(slot + (r * threads_ + threadIdx.x) * 16);
      codes_[r][0] = codes.x, codes_[r][1] = codes.y, codes_[r][2] = codes.z, codes_[r][3] = codes.w;
      scale_[r] = __uint_as_float(load_shared_4(words + 4 * r * threads_));
    }
    if constexpr (kNested) {
      const uint32_t note = load_shared_4(words + 16 * threads_);
      const int job = note >> 16;
      const float* book = reinterpret_cast<const float*>(memory_ + kPairBytes) + 256 * job;
      const float offset = args.jobs.jobs[job].weight.absmax.offset;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint32_t code = __float_as_uint(scale_[r]) >> (note >> (8 * r) & 31) & 255;
        scale_[r] = nested_value(book[code], __uint_as_float(load_shared_4(words + (8 + 4 * r) * threads_)), offset);
      }
    }
    prefetch(args);
  }

  __device__ __forceinline__ void decode(int half, uint32_t (&fragments)[4][4]) const {
#pragma unroll
    for (int w = 0; w < 2; ++w) {
      const uint32_t upper = codes_[0][2 * half + w], lower = codes_[1][2 * half + w];
      fragments[2 * w][0] = value<0>(upper, scale_[0]);
      fragments[2 * w][1] = value<0>(lower, scale_[1]);
      fragments[2 * w][2] = value<1>(upper, scale_[0]);
      fragments[2 * w][3] = value<1>(lower, scale_[1]);
      fragments[2 * w + 1][0] = value<2>(upper, scale_[0]);
      fragments[2 * w + 1][1] = value<2>(lower, scale_[1]);
      fragments[2 * w + 1][2] = value<3>(upper, scale_[0]);
      fragments[2 * w + 1][3] = value<3>(lower, scale_[1]);
    }
  }

  template <int kCount>
  __device__ static void store(const TileArgs& args, const DeviceJob& job, int row, int first,
                               const float (&sums)[kCount]) {
    store_sums(args, job, row, first, sums, [](float sum, int, int) { return sum; });
  }

 private:
  template <int kByte>
  __device__ __forceinline__ uint32_t value(uint32_t word, float scale) const {
    extern __shared__ __align__(128) uint8_t memory[];
    const float2 pair =
        *reinterpret_cast<const float2*>(memory + __byte_perm(word, threadIdx.x % 16 * 8, 0x5504 | kByte << 4));
    return round_pair<T>(__fmul_rn(pair.x, scale), __fmul_rn(pair.y, scale));
  }

  __device__ __forceinline__ void enter_tile(const TileArgs& args) {
    const int first = enter(args);
    const DeviceWeight& weight = job_->weight;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = min(first + 8 * r, job_->rows - 1);
      rows_[r] = weight.data + (int64_t{row} * args.cols >> 1) + threadIdx.x % 4 * 16;
      units_[r] = static_cast<uint32_t>(row) * static_cast<uint32_t>(args.cols >> 5) + threadIdx.x % 4;
    }
    unit_shift_ = weight.block_shift - 5;
    if constexpr (kNested) {
      scales_ = weight.absmax.codes;
      groups_ = weight.absmax.nested_absmax;
      blocks_ = static_cast<uint32_t>((int64_t{job_->rows} * args.cols - 1) >> weight.block_shift) + 1;
      job_note_ = static_cast<uint32_t>(job_ - args.jobs.jobs) << 16;
    } else {
      scales_ = reinterpret_cast<const uint8_t*>(weight.absmax.values);
    }
  }

  __device__ __forceinline__ void prefetch(const TileArgs& args) {
    if (at_ < end_) {
      const uint32_t slot = ring_ + filling_ * threads_ * kThreadBytes;
      const uint32_t words = slot + 32 * threads_ + 4 * threadIdx.x;
      const bool is_inside = chunk_ * kTileChunk + threadIdx.x % 4 * 32 < args.cols;
      const int at = is_inside ? chunk_ : 0;
      uint32_t note = job_note_;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint32_t block = (units_[r] + 4 * at) >> unit_shift_;
        copy_async_16(slot + (r * threads_ + threadIdx.x) * 16, rows_[r] + 64 * at, is_inside ? 16 : 0);
        if constexpr (kNested) {
          const uint32_t word = block & ~3u;
          copy_async_4(words + 4 * r * threads_, scales_ + word, static_cast<int>(min(4u, blocks_ - word)));
          copy_async_4(words + (8 + 4 * r) * threads_, groups_ + (block >> 8), 4);
          note |= (block & 3) << (8 * r + 3);
        } else {
          copy_async_4(words + 4 * r * threads_, scales_ + uint64_t{block} * 4, is_inside ? 4 : 0);
        }
      }
      if constexpr (kNested) asm volatile("st.shared.u32 [%0], %1;" ::"r"(words + 16 * threads_), "r"(note) : "memory");
      if (advance(args)) enter_tile(args);
    }
    commit_copies();
    filling_ = filling_ + 1 == kStages ? 0 : filling_ + 1;
  }

  const uint8_t* memory_;
  const uint8_t* rows_[2];
  const uint8_t* scales_;
  const float* groups_;
  uint32_t units_[2], unit_shift_, blocks_, job_note_ = 0;
  int filling_ = 0, reading_ = 0;
  uint32_t codes_[2][4];
  float scale_[2];
};

}  // namespace nibble::kernels::cuda
