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
  using Sum = float;
  using Shared = FewRowsShared<FewRows4Bit>;
  static constexpr bool kCanGate = true;
  static constexpr int kChunk = 128;                  // columns: 64 bytes of a row
  static constexpr int kXPadding = 8;                 // rows of x start 16 bytes apart, modulo all banks
  static constexpr int kTableRow = 256;               // so that one byte permutation makes an address
  static constexpr int kPairBytes = 256 * kTableRow;  // a pair of T for each byte, a copy for each lane in half a row
  static constexpr int kBookBytes = kNested ? kMaxJobs * 1024 : 0;
  static constexpr int kTableBytes = kPairBytes + kBookBytes;
  static constexpr int kSlotBytes = 16 * 64;
  static constexpr int kScales = 8;  // runs of 64 columns of a row that a lane takes care of
  static constexpr int64_t kMaxCols = int64_t{kScales} * 32 * 64;

  /// Scales of 16 rows for each 64 columns, twice; the rows 8 bytes apart, modulo all banks.
  static int extra_bytes(int64_t cols) { return 2 * 16 * 4 * scale_stride(static_cast<int>(cols)); }

  __device__ explicit FewRows4Bit(int lane) : lane_(lane), group_(lane / 4), quad_(lane % 4) {}

  __device__ __forceinline__ void fill_table(const FewRowsArgs& args, const Shared& shared) {
    if (args.norm_weight)
#pragma unroll
      for (int j = 0; j < kNormQuads; ++j) {
        const int quad = static_cast<int>(threadIdx.x) + j * kThreads;
        if (4 * quad < args.cols) norm_[j] = *reinterpret_cast<const float4*>(args.norm_weight + 4 * quad);
      }
    constexpr int kBookLoads = kBookBytes / 4 / kThreads;
    float book[kBookLoads + 1];  // under way while the table is filled
#pragma unroll
    for (int j = 0; j < kBookLoads; ++j) {
      const int i = static_cast<int>(threadIdx.x) + j * kThreads;
      book[j] = i < 256 * args.jobs.count ? args.jobs.jobs[i / 256].weight.absmax.nested_code_book[i % 256] : 0.0f;
    }
    for (int i = threadIdx.x; i < 256 * 8; i += kThreads) {
      const int byte = i / 8, piece = (i + byte) % 8;  // rotated: neighbours write to different banks
      const T pair[2] = {from_float<T>(args.book[byte / 16]), from_float<T>(args.book[byte % 16])};
      const uint32_t word = *reinterpret_cast<const uint32_t*>(pair);
      *reinterpret_cast<uint4*>(shared.table + byte * kTableRow + piece * 16) = make_uint4(word, word, word, word);
    }
#pragma unroll
    for (int j = 0; j < kBookLoads; ++j)
      reinterpret_cast<float*>(shared.table + kPairBytes)[threadIdx.x + j * kThreads] = book[j];
  }

  __device__ __forceinline__ void prepare(const FewRowsArgs& args, const Shared& shared, int padded) const {
    if (!args.norm_weight) return stage_rounded(args, shared.x, padded);
    const int quads = args.cols / 4, warp = static_cast<int>(threadIdx.x) / 32;
    float4 held[kNormQuads];  // of the last row
    for (int i = 0; i < args.m; ++i) {
      float squares = 0;
      const auto add = [&](float4 x) {
        squares = fmaf(x.x, x.x, fmaf(x.y, x.y, fmaf(x.z, x.z, fmaf(x.w, x.w, squares))));
      };
#pragma unroll
      for (int j = 0; j < kNormQuads; ++j) {
        const int quad = static_cast<int>(threadIdx.x) + j * kThreads;
        held[j] = make_float4(0, 0, 0, 0);
        if (quad < quads) held[j] = args.x.four_at(int64_t{i} * args.cols + 4 * quad);
      }
#pragma unroll
      for (int j = 0; j < kNormQuads; ++j) add(held[j]);
#pragma unroll 2
      for (int quad = static_cast<int>(threadIdx.x) + kNormQuads * kThreads; quad < quads; quad += kThreads)
        add(args.x.four_at(int64_t{i} * args.cols + 4 * quad));
      squares = warp_sum(squares);
      if (lane_ == 0) shared.sums[i * kFewRowsWarps + warp] = squares;
    }
    __syncthreads();
    for (int i = 0; i < args.m; ++i) {
      float total = 0;
#pragma unroll
      for (int w = 0; w < kFewRowsWarps; ++w) total += shared.sums[i * kFewRowsWarps + w];
      const float scale = 1.0f / sqrtf(total / static_cast<float>(args.cols) + args.eps);
#pragma unroll
      for (int j = 0; j < kNormQuads; ++j) {
        const int quad = static_cast<int>(threadIdx.x) + j * kThreads;
        if (quad >= quads) continue;
        const float4 x = i == args.m - 1 ? held[j] : args.x.four_at(int64_t{i} * args.cols + 4 * quad);
        store_normed(args, shared, i, quad, scale, norm_[j], x);
      }
      for (int quad = static_cast<int>(threadIdx.x) + kNormQuads * kThreads; quad < quads; quad += kThreads)
        store_normed(args, shared, i, quad, scale, *reinterpret_cast<const float4*>(args.norm_weight + 4 * quad),
                     args.x.four_at(int64_t{i} * args.cols + 4 * quad));
      for (int c = args.cols + static_cast<int>(threadIdx.x); c < padded; c += kThreads)
        shared.x[i * args.x_stride + c] = from_float<T>(0.0f);
    }
  }

  /// The copies go on to another tile.
  __device__ __forceinline__ void enter(const FewRowsArgs& args, int tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const TileRow at = row_of(args, tile, group_ + 8 * half);
      codes_[half] = args.jobs.jobs[at.job].weight.data + ((int64_t{at.row} * args.cols) >> 1) + quad_ * 16;
    }
  }

  __device__ __forceinline__ void prefetch(const FewRowsArgs& args, uint32_t slot, int chunk) {
    const bool is_inside = chunk * kChunk + quad_ * 32 < args.cols;
    const int valid = is_inside ? 16 : 0, at = is_inside ? chunk * 64 : 0;
    // A row's 64 bytes in two halves, swapped in every second pair of rows: eight rows are read without conflicts.
    const uint32_t to = slot + group_ * 64 + (((quad_ >> 1) ^ (group_ >> 1 & 1)) * 32) + (quad_ & 1) * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half) copy_async_16(to + half * 512, codes_[half] + at, valid);
  }

  /// Starts loading the scales of a tile: a row a warp.
  __device__ __forceinline__ void load_scales(const FewRowsArgs& args, int tile) {
    const TileRow at = row_of(args, tile, static_cast<int>(threadIdx.x) / 32);
    const DeviceJob& job = args.jobs.jobs[at.job];
    const int units = args.cols >> 6;
    const uint32_t first = static_cast<uint32_t>(at.row) * static_cast<uint32_t>(units);
    const int shift = job.weight.block_shift - 6;
    const Absmax& absmax = job.weight.absmax;
#pragma unroll
    for (int j = 0; j < kScales; ++j) {
      const int unit = lane_ + 32 * j;
      if (32 * j >= units) break;
      if (unit >= units) continue;
      const uint32_t block = (first + unit) >> shift;
      if constexpr (kNested) {
        codes8_[j] = absmax.codes[block];
        scales_[j] = absmax.nested_absmax[block >> 8];
      } else {
        scales_[j] = absmax.values[block];
      }
    }
  }

  /// Decodes them; zeros past the last column, where weights are not read.
  __device__ __forceinline__ void store_scales(const FewRowsArgs& args, const Shared& shared, int tile,
                                               int half) const {
    const int units = args.cols >> 6, stride = scale_stride(args.cols);
    float* row = reinterpret_cast<float*>(shared.extra + half * shared.extra_half) + threadIdx.x / 32 * stride;
    const int job = row_of(args, tile, static_cast<int>(threadIdx.x) / 32).job;
    const float* book = reinterpret_cast<const float*>(shared.table + kPairBytes) + 256 * job;
    const float offset = args.jobs.jobs[job].weight.absmax.offset;
#pragma unroll
    for (int j = 0; j < kScales; ++j) {
      const int unit = lane_ + 32 * j;
      if (32 * j >= stride - 2) break;
      if (unit >= stride - 2) continue;
      float scale = 0;
      if (unit < units) scale = kNested ? nested_value(book[codes8_[j]], scales_[j], offset) : scales_[j];
      row[unit] = scale;
    }
  }

  /// The products go on to another tile.
  __device__ __forceinline__ void begin() {
#pragma unroll
    for (float& value : total_) value = 0;
  }

  __device__ __forceinline__ void multiply(const FewRowsArgs& args, const Shared& shared, uint32_t slot, const T* x,
                                           int chunk, int half) {
    const int stride = scale_stride(args.cols);
    const float* scales =
        reinterpret_cast<const float*>(shared.extra + half * shared.extra_half) + group_ * stride + 2 * chunk;
    const float2 upper = *reinterpret_cast<const float2*>(scales);
    const float2 lower = *reinterpret_cast<const float2*>(scales + 8 * stride);
    const uint32_t at = slot + group_ * 64 + quad_ * 8, swapped = (group_ >> 1 & 1) * 32;
    accumulate(at + swapped, at + (swapped ^ 32), shared_address(x + chunk * kChunk + quad_ * 16), group_ < args.m,
               upper, lower);
  }

  /// The products of a chunk, all in shared memory: codes of this lane's row and the one eight below, in blocks of 64
  /// columns at two places; x from the lane's columns on. Lanes whose sums nobody reads need no x.
  __device__ __forceinline__ void accumulate(uint32_t first, uint32_t second, uint32_t columns, bool has_x,
                                             float2 upper_scales, float2 lower_scales) {
    float sums[2][4];
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      const uint32_t at = block ? second : first;
      const uint2 upper = load_8(at), lower = load_8(at + kSlotBytes / 2);
#pragma unroll
      for (float& value : sums[block]) value = 0;
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        const uint4 xs = load_16_if(has_x, columns + block * 128 + pair * 16);
        const uint32_t u = pair ? upper.y : upper.x, l = pair ? lower.y : lower.x;
        mma_16<T>(sums[block], look_up<0>(u), look_up<0>(l), look_up<1>(u), look_up<1>(l), xs.x, xs.y);
        mma_16<T>(sums[block], look_up<2>(u), look_up<2>(l), look_up<3>(u), look_up<3>(l), xs.z, xs.w);
      }
    }
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      const float upper_scale = block ? upper_scales.y : upper_scales.x;
      const float lower_scale = block ? lower_scales.y : lower_scales.x;
      total_[0] = fmaf(upper_scale, sums[block][0], total_[0]);
      total_[1] = fmaf(upper_scale, sums[block][1], total_[1]);
      total_[2] = fmaf(lower_scale, sums[block][2], total_[2]);
      total_[3] = fmaf(lower_scale, sums[block][3], total_[3]);
    }
  }

  __device__ __forceinline__ float sum(int i) const { return total_[i]; }

  __device__ __forceinline__ void end(const FewRowsArgs&, const Shared&, int, int) const {}

  __device__ __forceinline__ float finish(const FewRowsArgs& args, const Shared&, const DeviceJob&, int, int, int, int,
                                          float sum) const {
    return sum * args.book_scale;
  }

 private:
  static constexpr int kThreads = kFewRowsWarps * 32;
  static constexpr int kNormQuads = 2;  // of a norm's weights, in hand before x is there

  /// A row of a tile: of one job, or of gate (the upper eight) and up.
  struct TileRow {
    int job, row;
  };
  __device__ __forceinline__ static TileRow row_of(const FewRowsArgs& args, int tile, int in_tile) {
    if (args.is_gated) return {in_tile / 8, min(tile * (kFewRowsTile / 2) + in_tile % 8, args.jobs.jobs[0].rows - 1)};
    const DeviceJob& job = args.jobs.of_tile(tile);
    return {static_cast<int>(&job - args.jobs.jobs),
            min((tile - job.first_tile) * kFewRowsTile + in_tile, job.rows - 1)};
  }

  __device__ __forceinline__ static void store_normed(const FewRowsArgs& args, const Shared& shared, int i, int quad,
                                                      float scale, float4 weight, float4 x) {
    const float offset = args.weight_offset;
    const T rounded[4] = {
        from_float<T>(x.x * scale * (weight.x + offset)), from_float<T>(x.y * scale * (weight.y + offset)),
        from_float<T>(x.z * scale * (weight.z + offset)), from_float<T>(x.w * scale * (weight.w + offset))};
    *reinterpret_cast<uint2*>(shared.x + i * args.x_stride + 4 * quad) = *reinterpret_cast<const uint2*>(rounded);
  }

  __device__ __forceinline__ static uint2 load_8(uint32_t address) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
    return v;
  }

  /// Anything if it is not wanted.
  __device__ __forceinline__ static uint4 load_16_if(bool is_wanted, uint32_t address) {
    uint4 v;
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %4, 0;\n@p ld.shared.v4.u32 {%0,%1,%2,%3}, [%5];\n}"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(static_cast<uint32_t>(is_wanted)), "r"(address));
    return v;
  }

  __host__ __device__ static int scale_stride(int cols) { return (cols + kChunk - 1) / kChunk * 2 + 2; }

  /// The pair of byte kByte: its number above this lane's place in a row.
  template <int kByte>
  __device__ __forceinline__ uint32_t look_up(uint32_t word) const {
    const uint32_t at = __byte_perm(word, 4 * lane_, 0x5504 | kByte << 4);
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    uint32_t pair;
    asm volatile("ld.shared.u32 %0, [%1 + %2];" : "=r"(pair) : "r"(at), "n"(kFewRowsShared));
    return pair;
#else
    extern __shared__ __align__(128) uint8_t shared[];
    return *reinterpret_cast<const uint32_t*>(shared + at);
#endif
  }

  int lane_, group_, quad_;
  float4 norm_[kNormQuads] = {};
  const uint8_t* codes_[2];  // of the copies
  float total_[4];
  float scales_[kScales];
  uint8_t codes8_[kScales];
};

}  // namespace nibble::kernels::cuda
