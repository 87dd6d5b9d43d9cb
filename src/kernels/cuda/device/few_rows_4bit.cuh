// 4-bit products of at most eight rows of x: sixteen rows of weights a tile are the tensor cores' left side, decoded
// byte by byte through a table of value pairs; absmax multiplies the sums of 64 columns. The warps of a block share a
// tile's columns, each with a ring of its own; none waits for the others but one, in turns, that adds their sums.
#pragma once

#include "kernels/cuda/device/few_rows_4bit_copies.cuh"
#include "kernels/cuda/device/few_rows_4bit_x.cuh"
#include "kernels/cuda/device/tensor_core.cuh"

namespace nibble::kernels::cuda {
namespace few4 {

__device__ __forceinline__ uint2 load_8(uint32_t address) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address) : "memory");
  return v;
}

/// Anything if it is not wanted.
__device__ __forceinline__ uint4 load_16_if(bool is_wanted, uint32_t address) {
  uint4 v;
  asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %4, 0;\n@p ld.shared.v4.u32 {%0,%1,%2,%3}, [%5];\n}"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(static_cast<uint32_t>(is_wanted)), "r"(address));
  return v;
}

/// The pair of byte kByte: its number above this lane's place in a row of the table.
template <int kByte>
__device__ __forceinline__ uint32_t look_up(uint32_t word, uint32_t place) {
  const uint32_t at = __byte_perm(word, place, 0x5504 | kByte << 4);
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  uint32_t pair;
  asm volatile("ld.shared.u32 %0, [%1 + %2];" : "=r"(pair) : "r"(at), "n"(kSharedBegin));
  return pair;
#else
  extern __shared__ __align__(128) uint8_t shared[];
  return *reinterpret_cast<const uint32_t*>(shared + at);
#endif
}

/// A pair of values for each byte, 32 copies in the first half of 256 bytes: one byte permutation makes an address.
template <typename T>
__device__ __forceinline__ void fill_pairs(const FewRows4BitArgs& args, uint8_t* table) {
  for (int i = static_cast<int>(threadIdx.x); i < 256 * 8; i += static_cast<int>(blockDim.x)) {
    const int byte = i / 8, piece = i % 8;
    const T pair[2] = {from_float<T>(args.book[byte / 16]), from_float<T>(args.book[byte % 16])};
    const uint32_t word = *reinterpret_cast<const uint32_t*>(pair);
    *reinterpret_cast<uint4*>(table + byte * kTableRow + piece * 16) = make_uint4(word, word, word, word);
  }
}

/// One warp's products of a tile: of rows group and group + 8 with rows 2 * quad and 2 * quad + 1 of x.
template <typename T>
struct Products {
  float total[4];

  /// 64 columns: the codes of two rows, x from this lane's columns on. Lanes whose sums nobody reads need no x.
  __device__ __forceinline__ void add(uint32_t codes, uint32_t x, bool has_x, uint32_t place, float upper_scale,
                                      float lower_scale) {
    const uint2 upper = load_8(codes), lower = load_8(codes + 8 * kTableRow);
    float sums[4] = {};
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const uint4 xs = load_16_if(has_x, x + pair * 16);
      const uint32_t u = pair ? upper.y : upper.x, l = pair ? lower.y : lower.x;
      mma_16<T>(sums, look_up<0>(u, place), look_up<0>(l, place), look_up<1>(u, place), look_up<1>(l, place), xs.x,
                xs.y);
      mma_16<T>(sums, look_up<2>(u, place), look_up<2>(l, place), look_up<3>(u, place), look_up<3>(l, place), xs.z,
                xs.w);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) total[i] = fmaf(i < 2 ? upper_scale : lower_scale, sums[i], total[i]);
  }
};

/// As barrier_wait, before compute capability 9.0, too.
__device__ __forceinline__ void wait_at(uint32_t barrier, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
  barrier_wait(barrier, parity);
#elif __CUDA_ARCH__ >= 800
  uint32_t is_done = 0;
  while (!is_done)
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(is_done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
#endif
}

/// The sum of all warps, in their order: of a row of x and a row of the tile.
__device__ __forceinline__ float sum_of_warps(const float* first, int stride) {
  float sum = first[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) sum += first[w * stride];
  return sum;
}

/// One warp adds the sums of a tile and stores them.
__device__ __forceinline__ void finish_tile(const FewRows4BitArgs& args, const float* sums, int tile, int lane) {
  const int stride = kTile * args.m;
  if (args.is_gated) {
    constexpr int kHalf = kTile / 2;
    for (int o = lane; o < kHalf * args.m; o += 32) {
      const int i = o / kHalf, in_tile = o % kHalf, row = tile * kHalf + in_tile;
      if (row >= args.jobs.jobs[0].rows) continue;
      const float* gate_bias = args.jobs.jobs[0].out.bias;
      const float* up_bias = args.jobs.jobs[1].out.bias;
      const float* first = sums + i * kTile + in_tile;
      const float gate = sum_of_warps(first, stride) * args.book_scale + (gate_bias ? gate_bias[row] : 0.0f);
      const float up = sum_of_warps(first + kHalf, stride) * args.book_scale + (up_bias ? up_bias[row] : 0.0f);
      put(args.gated_out, i, row, activated(args.activation, gate) * up);
    }
    return;
  }
  const DeviceJob& job = args.jobs.of_tile(tile);
  for (int o = lane; o < kTile * args.m; o += 32) {
    const int i = o / kTile, in_tile = o % kTile, row = (tile - job.first_tile) * kTile + in_tile;
    if (row < job.rows) put(job.out, i, row, sum_of_warps(sums + i * kTile + in_tile, stride) * args.book_scale);
  }
}

}  // namespace few4

template <typename T, bool kNested, bool kWhole>
__global__ void __launch_bounds__(few4::kWarps * 32, 1)
    few_rows_4bit_kernel(const __grid_constant__ FewRows4BitArgs args) {
#if __CUDA_ARCH__ >= 800
  using namespace few4;
  allow_next_launch_where_possible();
  extern __shared__ __align__(128) uint8_t memory[];
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if (shared_address(memory) != kSharedBegin) __trap();
#endif
  constexpr int kScales = kScaleBytes<kNested, kWhole>;
  const int warp = __shfl_sync(kFullMask, static_cast<int>(threadIdx.x) / 32, 0);  // known to be the same in all lanes
  const int step = static_cast<int>(gridDim.x);
  const int lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  const int chunks = (args.cols + kChunk - 1) / kChunk, tiles = args.jobs.tiles;
  const Layout layout(args.m, args.jobs.count, kScales, 0);
  const uint32_t table = shared_address(memory);
  uint8_t* own_scales = memory + layout.scales + warp * (kStages * kScales);

  int ahead_tile = warp < chunks ? static_cast<int>(blockIdx.x) : tiles, ahead_chunk = warp;
  const auto begin_copies = [&](int stage) {
    if (ahead_tile < tiles)
      copy_chunk<kNested, kWhole>(args, ahead_tile, ahead_chunk, stage_at(table, warp, stage),
                                  shared_address(own_scales + stage * kScales), lane);
    commit_copies();
    ahead_chunk += kWarps;
    if (ahead_chunk < chunks) return;
    ahead_chunk = warp;
    ahead_tile += step;
  };
  begin_copies(0);
  const uint32_t barriers = table + layout.barriers;  // two: a tile's sums are there; two: they are read
  if (threadIdx.x < 4) barrier_init(barriers + threadIdx.x * 8, threadIdx.x < 2 ? kWarps * 32 : 32);
  auto* books = reinterpret_cast<float*>(memory + layout.books);
  auto* all_sums = reinterpret_cast<float*>(memory + layout.sums);
  const NormWeights norm(args);
  fill_books<kNested>(args, books);
  fill_pairs<T>(args, memory);
  wait_for_previous();  // until here only weights were read
  stage_x<T>(args, norm, reinterpret_cast<T*>(memory + layout.x), all_sums);
  __syncthreads();

  const uint32_t place = 4 * lane;
  const uint32_t x_row = table + layout.x + min(group, args.m - 1) * args.x_stride * 2 + quad * 32;
  const uint32_t line = group * kTableRow + quad * 8 + turned(group) * 32;
  const bool has_x = group < args.m;
  int turns = 0, stage = 0;  // turns: tiles that this block has begun
  for (int tile = blockIdx.x; tile < tiles; tile += step, ++turns) {
    Products<T> products{};
    const TilePlace tile_place(args, tile);
    for (int chunk = warp; chunk < chunks; chunk += kWarps) {
      wait_copies<0>();
      __syncwarp();
      begin_copies(stage ^ 1);  // where the chunk before was read
      const auto scale = [&](int in_tile) {
        return scale_of<kNested, kWhole>(args, books, own_scales + stage * kScales, tile_place, chunk, in_tile, quad);
      };
      const float upper = scale(group), lower = scale(group + 8);  // of columns 64 * quad and on
      const uint32_t at = stage_at(table, warp, stage) + line, x = x_row + chunk * (kChunk * 2);
#pragma unroll
      for (int unit = 0; unit < 4; ++unit)
        products.add(at ^ unit * 32, x + unit * 128, has_x, place, __shfl_sync(kFullMask, upper, unit, 4),
                     __shfl_sync(kFullMask, lower, unit, 4));
      stage ^= 1;
    }
    const int buffer = turns % 2, in_buffer = Layout::sums_of_tile(args.m);
    const uint32_t there = barriers + buffer * 8;
    if (turns >= 2) wait_at(there + 16, (turns / 2 - 1) & 1);
    float* own = all_sums + buffer * in_buffer + warp * kTile * args.m;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (2 * quad + i % 2 < args.m) own[(2 * quad + i % 2) * kTile + group + i / 2 * 8] = products.total[i];
    barrier_arrive(there);
    // The warps take turns; a tile is finished one tile later, when all of its sums are likely there, but for the last.
    const int last_done = tile + step >= tiles ? 0 : 1;
#pragma unroll 1
    for (int late = turns > 0 ? 1 : 0; late >= last_done; --late) {
      const int turn = turns - late, of = turn % 2;
      if (turn % kWarps != warp) continue;
      wait_at(barriers + of * 8, turn / 2 & 1);
      finish_tile(args, all_sums + of * in_buffer, tile - late * step, lane);
      barrier_arrive(barriers + of * 8 + 16);
    }
  }
#endif
}

}  // namespace nibble::kernels::cuda
