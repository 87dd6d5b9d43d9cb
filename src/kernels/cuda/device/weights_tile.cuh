// Weights as tile.cuh wants them: each thread brings and decodes the values of its own two rows, through a ring in
// shared memory that no other thread reads.
#pragma once

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

/// The eight values of `word` times `scale`, each rounded once. table: of a byte's two values, every so many-th for
/// this lane.
template <typename T, int kCopies = 16>
__device__ __forceinline__ uint4 decode_word(uint32_t word, float scale, const float2* table) {
  uint32_t out[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = table[(word >> (8 * i) & 255) * kCopies];
    out[i] = round_pair<T>(__fmul_rn(pair.x, scale), __fmul_rn(pair.y, scale));
  }
  return make_uint4(out[0], out[1], out[2], out[3]);
}

/// The line of tiles as the copies walk it, ahead of the products.
class TileStream {
 public:
  __device__ TileStream(uint32_t ring, int tile_rows, int threads)
      : ring_(ring), tile_rows_(tile_rows), threads_(threads) {
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread_));  // read once: it costs more than a register
  }

  __device__ __forceinline__ uint32_t thread() const { return thread_; }

 protected:
  __device__ __forceinline__ void begin(const TileArgs& args, const TileRange& range) {
    left_ = static_cast<int>(range.end - range.at);
    tile_ = static_cast<int>(range.at / args.chunks);
    chunk_ = static_cast<int>(range.at - int64_t{tile_} * args.chunks);
  }

  /// The thread's first row in the tile that the copies go on to; the other is 8 on.
  __device__ __forceinline__ int enter(const TileArgs& args, const DeviceJob*& job) const {
    const int row_tile = tile_ / args.column_tiles;
    job = &args.jobs.of_tile(row_tile);
    return (row_tile - job->first_tile) * tile_rows_ + static_cast<int>(thread_ / 32 * 16 + thread_ % 32 / 4);
  }

  /// True if the copies have another tile to enter.
  __device__ __forceinline__ bool advance(const TileArgs& args) {
    --left_;
    if (++chunk_ < args.chunks) return false;
    chunk_ = 0;
    ++tile_;
    return left_ > 0;
  }

  uint32_t ring_;
  int tile_rows_, threads_;
  uint32_t thread_;
  int left_ = 0, tile_ = 0, chunk_ = 0;
  int filling_ = 0, reading_ = 0;
};

/// Blocks of 32 or more, a power of two; cols a multiple of 32; absmax in fp32. Each value is rounded once, as code
/// book times absmax.
template <typename T>
class Tile4Bit : public TileStream {
 public:
  using X = T;
  using Acc = float;
  static constexpr int kStages = 3;
  static constexpr int kHalves = 2;
  static constexpr int kXBytes = 128;                  // of a row of x in half a chunk
  static constexpr int kTableRow = 256;                // so that one byte permutation makes an address
  static constexpr int kTableBytes = 256 * kTableRow;  // a pair of floats for each byte, sixteen copies in half a row
  static constexpr int kThreadBytes = 32 + 8;

  __device__ Tile4Bit(uint32_t ring, uint32_t table, int tile_rows, int threads)
      : TileStream(ring, tile_rows, threads), table_(table), place_(thread_ % 16 * 8) {}

  __device__ static void fill_table(const TileArgs& args, uint8_t* memory, int threads) {
    for (int i = threadIdx.x; i < 256 * 8; i += threads) {
      const int byte = i / 8, piece = (i + byte) % 8;
      const float high = args.book[byte / 16], low = args.book[byte % 16];
      *reinterpret_cast<float4*>(memory + byte * kTableRow + piece * 16) = make_float4(high, low, high, low);
    }
  }

  __device__ __forceinline__ void start(const TileArgs& args, const TileRange& range) {
    begin(args, range);
    if (left_ > 0) enter_tile(args);
#pragma unroll 1
    for (int s = 0; s < kStages - 1; ++s) prefetch(args);
  }

  /// The codes and scales of the next chunk.
  __device__ __forceinline__ void take() {
    wait_copies<kStages - 2>();
    const uint32_t slot = ring_ + reading_ * threads_ * kThreadBytes;
    reading_ = reading_ + 1 == kStages ? 0 : reading_ + 1;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint4 codes = load_shared_16(slot + (r * threads_ + thread_) * 16);
      codes_[r][0] = codes.x, codes_[r][1] = codes.y, codes_[r][2] = codes.z, codes_[r][3] = codes.w;
      scale_[r] = __uint_as_float(load_shared_4(slot + (32 + 4 * r) * threads_ + 4 * thread_));
    }
  }

  __device__ __forceinline__ void prefetch(const TileArgs& args) {
    if (left_ > 0) {
      const uint32_t slot = ring_ + filling_ * threads_ * kThreadBytes;
      const bool is_inside = chunk_ * kTileChunk + static_cast<int>(thread_ % 4) * 32 < args.cols;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint32_t block = is_inside ? units_[r] >> unit_shift_ : 0;
        copy_async_16(slot + (r * threads_ + thread_) * 16, is_inside ? rows_[r] : scales_, is_inside ? 16 : 0);
        copy_async_4(slot + (32 + 4 * r) * threads_ + 4 * thread_, scales_ + uint64_t{block} * 4, is_inside ? 4 : 0);
        rows_[r] += 64;
        units_[r] += 4;
      }
      if (advance(args)) enter_tile(args);
    }
    commit_copies();
    filling_ = filling_ + 1 == kStages ? 0 : filling_ + 1;
  }

  __device__ __forceinline__ void decode(int half, uint32_t (&fragments)[4][4]) const {
    float2 pairs[16];
#pragma unroll
    for (int w = 0; w < 2; ++w)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint32_t word = codes_[r][2 * half + w];
        float2* to = pairs + 8 * w + r;
        to[0] = look_up<0>(word);
        to[2] = look_up<1>(word);
        to[4] = look_up<2>(word);
        to[6] = look_up<3>(word);
      }
#pragma unroll
    for (int i = 0; i < 16; ++i)
      fragments[i / 4][i % 4] =
          round_pair<T>(__fmul_rn(pairs[i].x, scale_[i % 2]), __fmul_rn(pairs[i].y, scale_[i % 2]));
  }

  template <int kCount>
  __device__ static void store(const TileArgs& args, const DeviceJob& job, int row, int first,
                               const float (&sums)[kCount]) {
    store_sums(args, job, row, first, sums, [](float sum, int, int) { return sum; });
  }

 private:
  /// The two values of byte kByte. The table does not change any more, so that these loads may move.
  template <int kByte>
  __device__ __forceinline__ float2 look_up(uint32_t word) const {
    float2 pair;
    const uint32_t address = table_ + __byte_perm(word, place_, 0x5504 | kByte << 4);
    asm("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(pair.x), "=f"(pair.y) : "r"(address));
    return pair;
  }

  __device__ __forceinline__ void enter_tile(const TileArgs& args) {
    const DeviceJob* job;
    const int first = enter(args, job);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = min(first + 8 * r, job->rows - 1);
      rows_[r] = job->weight.data + (int64_t{row} * args.cols >> 1) + thread_ % 4 * 16 + chunk_ * 64;
      units_[r] = static_cast<uint32_t>(row) * static_cast<uint32_t>(args.cols >> 5) + thread_ % 4 + chunk_ * 4;
    }
    unit_shift_ = job->weight.block_shift - 5;
    scales_ = reinterpret_cast<const uint8_t*>(job->weight.absmax.values);
  }

  uint32_t table_, place_;  // place_: of this lane in a row
  const uint8_t* rows_[2];
  const uint8_t* scales_;
  uint32_t units_[2], unit_shift_;
  uint32_t codes_[2][4];
  float scale_[2];
};

}  // namespace nibble::kernels::cuda
