// low_rank_update and low_rank_gradient: products with one side of few columns, bound by reading and writing
// activations once. Every warp loads its mma operands straight from memory: which column an operand's column stands for
// is free, and chosen so that a lane's elements lie side by side.
#include <algorithm>

#include "kernels/cuda/device/mma.cuh"
#include "kernels/cuda/entries.h"
#include "kernels/dropout_rule.h"

namespace nibble::kernels::cuda {
namespace {

using bf16 = __nv_bfloat16;

/// What dropout leaves of eight neighbouring elements, the first of which is a multiple of 8.
struct Dropper {
  uint64_t seed;
  uint32_t limit;  // 0: nothing is dropped

  __device__ __forceinline__ void apply(uint4& elements, int64_t position) const {
    if (limit == 0) return;
    uint32_t* words = &elements.x;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint64_t random = dropout_word(seed, static_cast<uint64_t>(position) / 4 + half);
      const uint32_t low = static_cast<uint32_t>(random), high = static_cast<uint32_t>(random >> 32);
      words[2 * half] &= mask_of(low);
      words[2 * half + 1] &= mask_of(high);
    }
  }
  __device__ __forceinline__ uint32_t mask_of(uint32_t random) const {
    return ((random & 0xffff) >= limit ? 0xffffu : 0u) | (random >> 16 >= limit ? 0xffff0000u : 0u);
  }
};

Dropper dropper_of(float p, uint64_t seed) { return {seed, p > 0 ? dropout_limit(p) : 0}; }

__device__ __forceinline__ uint4 load_16(const bf16* from) { return *reinterpret_cast<const uint4*>(from); }
__device__ __forceinline__ uint32_t load_4(const bf16* from) { return *reinterpret_cast<const uint32_t*>(from); }

/// A side of the adapter for the products: to (padded, count), or its transpose, = from rounded to bf16; zeros for
/// ranks from `rank` on.
struct Side {
  const float* from;
  int64_t count;
  bool rank_first_in, rank_first_out;
  bf16* to;
};

/// Grid: (elements, sides).
__global__ void prepare_kernel(Side first, Side second, int rank, int padded) {
  const Side& side = blockIdx.y == 0 ? first : second;
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, count = side.count;
  if (at >= count * padded) return;
  const int64_t r = side.rank_first_out ? at / count : at % padded, i = side.rank_first_out ? at % count : at / padded;
  const float value = r < rank ? side.from[side.rank_first_in ? r * count + i : i * rank + r] : 0.0f;
  side.to[at] = from_float<bf16>(value);
}

/// Of low_transposed: an even number of elements, so that pairs are aligned; those beyond m are zero.
__host__ __device__ __forceinline__ int64_t stride_of(int64_t m) { return (m + 7) / 8 * 8; }

constexpr int kLowWarps = 8;

/// low (m, kRank) and its transpose = factor * dropped x (m, cols) . w (kRank, cols)^T. A block 16 rows, warps share
/// the columns.
template <int kRank>
__global__ void __launch_bounds__(kLowWarps * 32)
    low_kernel(const bf16* x, const bf16* w, int64_t m, int64_t cols, Dropper dropper, float factor, bf16* low,
               bf16* low_transposed) {
  __shared__ float sums[kLowWarps][16][kRank + 1];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int64_t first = int64_t{blockIdx.x} * 16, stride = stride_of(m);
  const int64_t row0 = min(first + g, m - 1), row1 = min(first + g + 8, m - 1);
  constexpr int64_t kStep = kLowWarps * 32;
  const auto load = [&](uint4(&to)[2], int64_t c) {
    to[0] = c < cols ? load_16(x + row0 * cols + c) : uint4{};
    to[1] = c < cols ? load_16(x + row1 * cols + c) : uint4{};
  };
  float sum[kRank / 8][4] = {};
  uint4 ahead[2][2];  // loads come before what waits for others
  load(ahead[0], warp * 32 + 8 * t);
  load(ahead[1], warp * 32 + 8 * t + kStep);
  for (int64_t c = warp * 32 + 8 * t; c - 8 * t < cols; c += kStep) {
    uint4 now[2] = {ahead[0][0], ahead[0][1]}, b[kRank / 8];
    ahead[0][0] = ahead[1][0];
    ahead[0][1] = ahead[1][1];
    load(ahead[1], c + 2 * kStep);
#pragma unroll
    for (int n = 0; n < kRank / 8; ++n) b[n] = c < cols ? load_16(w + (n * 8 + g) * cols + c) : uint4{};
    dropper.apply(now[0], row0 * cols + c);
    dropper.apply(now[1], row1 * cols + c);
    const uint32_t first_half[4] = {now[0].x, now[1].x, now[0].y, now[1].y};
    const uint32_t second_half[4] = {now[0].z, now[1].z, now[0].w, now[1].w};
#pragma unroll
    for (int n = 0; n < kRank / 8; ++n) {
      multiply_bf16(sum[n], first_half, b[n].x, b[n].y);
      multiply_bf16(sum[n], second_half, b[n].z, b[n].w);
    }
  }
#pragma unroll
  for (int n = 0; n < kRank / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[warp][g + i / 2 * 8][n * 8 + 2 * t + i % 2] = sum[n][i];
  __syncthreads();
  for (int i = threadIdx.x; i < 16 * kRank; i += kLowWarps * 32) {
    const int r = i % kRank, row = i / kRank;
    if (first + row >= stride) continue;
    float total = 0;
#pragma unroll
    for (int part = 0; part < kLowWarps; ++part) total += sums[part][row][r];
    const bool is_valid = first + row < m;
    const bf16 value = from_float<bf16>(is_valid ? total * factor : 0.0f);
    if (is_valid) low[(first + row) * kRank + r] = value;
    low_transposed[r * stride + first + row] = value;
  }
}

constexpr int kWideWarps = 8, kWideRows = 32;

/// y (m, n) += factor * dropped low (m, kRank) . w (n, kRank)^T. A warp 32 columns of kWideRows rows.
template <int kRank>
__global__ void __launch_bounds__(kWideWarps * 32)
    wide_kernel(const bf16* low, const bf16* w, int64_t first_row, int64_t m, int64_t n, Dropper dropper, float factor,
                bf16* y) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int64_t base = (int64_t{blockIdx.x} * kWideWarps + warp) * 32;
  if (base >= n) return;
  uint32_t b[4][kRank / 16][2];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int64_t column = min(base + g / 2 * 8 + 2 * j + g % 2, n - 1);
#pragma unroll
    for (int k = 0; k < kRank / 16; ++k) {
      b[j][k][0] = load_4(w + column * kRank + k * 16 + 2 * t);
      b[j][k][1] = load_4(w + column * kRank + k * 16 + 2 * t + 8);
    }
  }
  const int64_t column = base + 8 * t;
  const int64_t begin = first_row + int64_t{blockIdx.y} * kWideRows;
  const int64_t end = min(m, begin + kWideRows);
  const auto load = [&](uint4(&to)[2], int64_t first) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first + g + 8 * half;
      to[half] = row < end && column < n ? load_16(y + row * n + column) : uint4{};
    }
  };
  const auto load_low = [&](uint32_t(&to)[kRank / 16][4], int64_t first) {
    const bf16 *low0 = low + min(first + g, m - 1) * kRank + 2 * t,
               *low1 = low + min(first + g + 8, m - 1) * kRank + 2 * t;
#pragma unroll
    for (int k = 0; k < kRank / 16; ++k) {
      to[k][0] = load_4(low0 + k * 16);
      to[k][1] = load_4(low1 + k * 16);
      to[k][2] = load_4(low0 + k * 16 + 8);
      to[k][3] = load_4(low1 + k * 16 + 8);
    }
  };
  uint4 ahead[2];  // loads come before what waits for others
  uint32_t low_ahead[kRank / 16][4];
  load(ahead, begin);
  load_low(low_ahead, begin);
#pragma unroll 1
  for (int64_t first = begin; first < end; first += 16) {
    const int64_t rows[2] = {first + g, first + g + 8};
    const bool is_valid[2] = {rows[0] < m && column < n, rows[1] < m && column < n};
    uint4 before[2] = {ahead[0], ahead[1]};
    load(ahead, first + 16);
    float sum[4][4] = {};
    uint32_t a[kRank / 16][4];
#pragma unroll
    for (int k = 0; k < kRank / 16; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) a[k][i] = low_ahead[k][i];
    load_low(low_ahead, first + 16);
#pragma unroll
    for (int k = 0; k < kRank / 16; ++k)
#pragma unroll
      for (int j = 0; j < 4; ++j) multiply_bf16(sum[j], a[k], b[j][k][0], b[j][k][1]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!is_valid[half]) continue;
      uint4 keep{~0u, ~0u, ~0u, ~0u};
      dropper.apply(keep, rows[half] * n + column);
      uint32_t *words = &before[half].x, *kept = &keep.x;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float low_half = kept[j] & 1 ? sum[j][2 * half] * factor : 0.0f;
        const float high_half = kept[j] >> 31 ? sum[j][2 * half + 1] * factor : 0.0f;
        words[j] =
            pack_bf16(__uint_as_float(words[j] << 16) + low_half, __uint_as_float(words[j] & 0xffff0000u) + high_half);
      }
      *reinterpret_cast<uint4*>(y + rows[half] * n + column) = before[half];
    }
  }
}

constexpr int kTallWarps = 4;

__device__ __forceinline__ uint32_t pair_of(const uint4& even, const uint4& odd, int j) {
  const uint32_t *a = &even.x, *b = &odd.x;
  return __byte_perm(a[j / 2], b[j / 2], j % 2 == 0 ? 0x5410 : 0x7632);
}

/// partials (splits, kRank, n) = low_transposed (kRank, m) . dropped x (m, n), a share of the rows each. A block 64
/// columns; its warps take turns at rows.
template <int kRank>
__global__ void __launch_bounds__(kTallWarps * 32)
    tall_kernel(const bf16* low_transposed, const bf16* x, int64_t m, int64_t n, int64_t rows_of_split, Dropper dropper,
                float* partials) {
  __shared__ float4 sums[kRank * 16];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  const int64_t base = int64_t{blockIdx.x} * 64, column = base + 8 * g;
  const int64_t begin = blockIdx.y * rows_of_split, end = min(m, begin + rows_of_split), stride = stride_of(m);
  float sum[kRank / 16][8][4] = {};
  struct Rows {
    uint4 v[4];
    uint32_t a[kRank / 16][4];
  };
  const auto row_of = [&](int64_t row, int i) { return row + 2 * t + i % 2 + i / 2 * 8; };
  const auto load = [&](Rows& to, int64_t row) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      to.v[i] = row_of(row, i) < end && column < n ? load_16(x + row_of(row, i) * n + column) : uint4{};
    const bool has_low = row + 2 * t < end, has_high = row + 2 * t + 8 < end;
#pragma unroll
    for (int k = 0; k < kRank / 16; ++k) {
      const bf16 *low0 = low_transposed + (k * 16 + g) * stride + row + 2 * t, *low1 = low0 + 8 * stride;
      to.a[k][0] = has_low ? load_4(low0) : 0;
      to.a[k][1] = has_low ? load_4(low1) : 0;
      to.a[k][2] = has_high ? load_4(low0 + 8) : 0;
      to.a[k][3] = has_high ? load_4(low1 + 8) : 0;
    }
  };
  Rows ahead;  // loads come before what waits for others
  load(ahead, begin + 16 * warp);
  for (int64_t row = begin + 16 * warp; row < end; row += 16 * kTallWarps) {
    Rows now = ahead;
    load(ahead, row + 16 * kTallWarps);
#pragma unroll
    for (int i = 0; i < 4; ++i) dropper.apply(now.v[i], row_of(row, i) * n + column);
    const auto& v = now.v;
    const auto& a = now.a;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const uint32_t b0 = pair_of(v[0], v[1], j), b1 = pair_of(v[2], v[3], j);
#pragma unroll
      for (int k = 0; k < kRank / 16; ++k) multiply_bf16(sum[k][j], a[k], b0, b1);
    }
  }
  // The warps' sums in their order; of a rank, 16 quads of columns.
  for (int turn = 0; turn < kTallWarps; ++turn) {
    if (warp == turn) {
#pragma unroll
      for (int k = 0; k < kRank / 16; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float4& to = sums[(k * 16 + g + i / 2 * 8) * 16 + 2 * (2 * t + i % 2) + half];
            const float4 own{sum[k][4 * half][i], sum[k][4 * half + 1][i], sum[k][4 * half + 2][i],
                             sum[k][4 * half + 3][i]};
            to = turn == 0 ? own : float4{to.x + own.x, to.y + own.y, to.z + own.z, to.w + own.w};
          }
    }
    __syncthreads();
  }
  float* out = partials + int64_t{blockIdx.y} * kRank * n;
  for (int i = threadIdx.x; i < kRank * 16; i += kTallWarps * 32) {
    const int64_t c = base + i % 16 * 4;
    if (c < n) *reinterpret_cast<float4*>(out + i / 16 * n + c) = sums[i];
  }
}

/// out (rank, n), or its transpose, (=, or +=) factor * the sum of the partials, in their order.
__global__ void sum_partials_kernel(const float* partials, int64_t splits, int64_t n, int rank, int padded,
                                    float factor, bool is_transposed, bool accumulate, float* out) {
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= n * rank) return;
  const int64_t r = at / n, c = at % n;
  float sum = 0;
#pragma unroll 8
  for (int64_t s = 0; s < splits; ++s) sum += partials[(s * padded + r) * n + c];
  float* to = out + (is_transposed ? c * rank + r : at);
  *to = accumulate ? *to + sum * factor : sum * factor;
}

/// The launches of one call; kRank is the rank rounded up.
template <int kRank>
struct Launches {
  cudaStream_t stream;
  int rank;

  void prepare(const Side& first, const Side& second) const {
    const int64_t count = std::max(first.count, second.count);
    prepare_kernel<<<dim3(blocks_for(count * kRank, 256), 2), 256, 0, stream>>>(first, second, rank, kRank);
  }
  void low(const void* x, const bf16* w, int64_t m, int64_t cols, Dropper dropper, float factor, bf16* out,
           bf16* transposed) const {
    low_kernel<kRank><<<blocks_for(m, 16), kLowWarps * 32, 0, stream>>>(static_cast<const bf16*>(x), w, m, cols,
                                                                        dropper, factor, out, transposed);
  }
  void wide(const bf16* low, const bf16* w, int64_t m, int64_t n, Dropper dropper, float factor, void* y) const {
    constexpr int64_t kLimit = 65535 * int64_t{kWideRows};
    for (int64_t row = 0; row < m; row += kLimit) {
      const int64_t count = std::min(kLimit, m - row);
      wide_kernel<kRank>
          <<<dim3(blocks_for(n, 32 * kWideWarps), blocks_for(count, kWideRows)), kWideWarps * 32, 0, stream>>>(
              low, w, row, m, n, dropper, factor, static_cast<bf16*>(y));
    }
  }
  void tall(const bf16* low_transposed, const void* x, int64_t m, int64_t n, Dropper dropper, float factor,
            bool is_transposed, bool accumulate, float* partials, float* out) const {
    const int64_t splits = splits_of(m, n);
    const int64_t rows = ((m + splits - 1) / splits + 15) / 16 * 16;
    tall_kernel<kRank><<<dim3(blocks_for(n, 64), static_cast<unsigned>(splits)), kTallWarps * 32, 0, stream>>>(
        low_transposed, static_cast<const bf16*>(x), m, n, rows, dropper, partials);
    sum_partials_kernel<<<blocks_for(n * rank, 256), 256, 0, stream>>>(partials, splits, n, rank, kRank, factor,
                                                                       is_transposed, accumulate, out);
  }
  /// Shares of the rows that give the GPU blocks enough; each costs a partial sum.
  static int64_t splits_of(int64_t m, int64_t n) {
    return std::clamp<int64_t>(std::min(m / 128, int64_t{512} * 64 / n), 1, 32);
  }
  static int64_t partial_bytes(int64_t m, int64_t n) { return splits_of(m, n) * kRank * n * 4; }
};

template <typename Body>
void with_rank(int64_t rank, const Body& body) {
  if (rank <= 16) return body(std::integral_constant<int, 16>{});
  if (rank <= 32) return body(std::integral_constant<int, 32>{});
  body(std::integral_constant<int, 64>{});
}

int64_t padded(int64_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

void low_rank_update(const Context& context, const LowRankArgs& args) {
  if (args.m == 0) return;
  with_rank(args.rank, [&](auto rank) {
    constexpr int kRank = decltype(rank)::value;
    const int64_t a_bytes = padded(kRank * args.cols * 2), b_bytes = padded(kRank * args.rows * 2);
    auto* scratch = static_cast<uint8_t*>(context.scratch->reserve(a_bytes + b_bytes + kRank * args.m * 2));
    auto *a = reinterpret_cast<bf16*>(scratch), *b = reinterpret_cast<bf16*>(scratch + a_bytes),
         *low = reinterpret_cast<bf16*>(scratch + a_bytes + b_bytes);
    const Launches<kRank> launches{stream_of(context.stream), static_cast<int>(args.rank)};
    launches.prepare({args.a, args.cols, true, true, a}, {args.b, args.y ? args.rows : 0, false, false, b});
    launches.low(args.x, a, args.m, args.cols, dropper_of(args.p, args.seed), args.scale / (1 - args.p), low,
                 static_cast<bf16*>(args.low_transposed));
    if (!args.y) return;
    launches.wide(low, b, args.m, args.rows, {0, 0}, 1, args.y);
  });
}

void low_rank_gradient(const Context& context, const LowRankGradientArgs& args) {
  if (args.m == 0) return;
  with_rank(args.rank, [&](auto rank) {
    constexpr int kRank = decltype(rank)::value;
    using Launch = Launches<kRank>;
    const int64_t a_bytes = padded(kRank * args.cols * 2), b_bytes = padded(kRank * args.rows * 2);
    const int64_t low_bytes = padded(kRank * stride_of(args.m) * 2);
    const int64_t partial_bytes =
        std::max(Launch::partial_bytes(args.m, args.cols), Launch::partial_bytes(args.m, args.rows));
    auto* scratch = static_cast<uint8_t*>(context.scratch->reserve(a_bytes + b_bytes + 2 * low_bytes + partial_bytes));
    auto *a = reinterpret_cast<bf16*>(scratch), *b = reinterpret_cast<bf16*>(scratch + a_bytes),
         *low = reinterpret_cast<bf16*>(scratch + a_bytes + b_bytes), *transposed = low + low_bytes / 2;
    auto* partials = reinterpret_cast<float*>(scratch + a_bytes + b_bytes + 2 * low_bytes);
    const Launch launches{stream_of(context.stream), static_cast<int>(args.rank)};
    const Dropper dropper = dropper_of(args.p, args.seed);
    const float inverse = 1 / (1 - args.p);
    launches.prepare({args.b, args.rows, false, true, b}, {args.a, args.dx ? args.cols : 0, true, false, a});
    launches.low(args.dy, b, args.m, args.rows, {0, 0}, args.scale, low, transposed);
    if (args.db)
      launches.tall(static_cast<const bf16*>(args.low_transposed), args.dy, args.m, args.rows, {0, 0}, 1, true,
                    args.accumulate_b, partials, args.db);
    if (args.da)
      launches.tall(transposed, args.x, args.m, args.cols, dropper, inverse, false, args.accumulate_a, partials,
                    args.da);
    if (!args.dx) return;
    launches.wide(low, a, args.m, args.cols, dropper, inverse, args.dx);
  });
}

}  // namespace nibble::kernels::cuda
