// Launches of the matmul kernels: shared memory, grid, scratch.
#pragma once

#include <algorithm>

#include "kernels/cuda/device/few_rows.cuh"
#include "kernels/cuda/device/tile.cuh"
#include "kernels/cuda/device/tile_x.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kSharedLimit = 232448;  // of a block on compute capability 9.0; checked against where it is less

/// Shared memory that a block of this GPU may ask for.
inline int64_t shared_limit(int capability) {
  switch (capability) {
    case 80:
    case 87:
      return 166912;
    case 86:
    case 89:
    case 120:
    case 121:
      return 101376;
    default:
      return capability >= 90 ? kSharedLimit : 65536;
  }
}

inline constexpr int kFewRowsWarps = 16;

template <typename Weights>
int few_rows_stride(int64_t cols) {
  return static_cast<int>((cols + Weights::kChunk - 1) / Weights::kChunk * Weights::kChunk + Weights::kXPadding);
}

template <typename Weights>
bool fits_few_rows(const Context& context, const MatmulInput& input) {
  return input.m <= kFewRowsMax &&
         few_rows_shared<Weights>(kFewRowsWarps, static_cast<int>(input.m), few_rows_stride<Weights>(input.cols)) <=
             shared_limit(context.capability);
}

/// args: jobs and what Weights reads; the rest is filled in here.
template <typename Weights>
void launch_few_rows(const Context& context, const MatmulInput& input, FewRowsArgs& args) {
  args.x = input.x;
  args.m = static_cast<int>(input.m);
  args.cols = static_cast<int>(input.cols);
  args.x_stride = few_rows_stride<Weights>(input.cols);
  const auto kernel = few_rows_kernel<Weights, kFewRowsWarps>;
  const auto shared = static_cast<int>(few_rows_shared<Weights>(kFewRowsWarps, args.m, args.x_stride));
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  const auto blocks = static_cast<unsigned>(std::min(args.jobs.tiles, context.multiprocessors));
  kernel<<<blocks, kFewRowsWarps * 32, static_cast<size_t>(shared), stream_of(context.stream)>>>(args);
}

/// Starts while the launch before finishes; the kernel itself waits where it must.
template <typename Kernel, typename Args>
void launch_early(Kernel kernel, unsigned blocks, unsigned threads, size_t shared, cudaStream_t stream,
                  const Args& args) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  cudaLaunchKernelEx(&config, kernel, args);
}

/// Scratch of a tile launch: prepared x, then a partial tile for each block.
struct TileScratch {
  uint8_t* x;
  float* partials;
};

template <typename Weights, int kColumns, int kGroups>
struct TileLaunch {
  static constexpr int kRows = 64 * kGroups;

  static int64_t x_bytes(const MatmulInput& input) {
    const int64_t tiles = (input.m + kColumns - 1) / kColumns, chunks = (input.cols + kTileChunk - 1) / kTileChunk;
    return tiles * chunks * Weights::kHalves * kColumns * Weights::kXBytes;
  }

  static TileScratch reserve(const Context& context, const MatmulInput& input, int64_t more_bytes = 0) {
    auto* memory = static_cast<uint8_t*>(context.scratch->reserve(
        x_bytes(input) + int64_t{context.multiprocessors} * kRows * kColumns * 4 + more_bytes));
    return {memory, reinterpret_cast<float*>(memory + x_bytes(input))};
  }

  /// args: jobs, what Weights reads. x is prepared by a launch before this one.
  static void run(const Context& context, const MatmulInput& input, const TileScratch& scratch, TileArgs& args) {
    using Shared = TileShared<Weights, kColumns, kGroups>;
    args.x = scratch.x;
    args.partials = scratch.partials;
    args.flags = context.counters;
    args.m = static_cast<int>(input.m);
    args.cols = static_cast<int>(input.cols);
    args.chunks = static_cast<int>((input.cols + kTileChunk - 1) / kTileChunk);
    args.column_tiles = static_cast<int>((input.m + kColumns - 1) / kColumns);
    const auto kernel = tile_kernel<Weights, kColumns, kGroups>;
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shared::kBytes);
    const int64_t pieces = int64_t{args.jobs.tiles} * args.column_tiles * args.chunks;
    const auto blocks = static_cast<unsigned>(std::min<int64_t>(pieces, context.multiprocessors));
    launch_early(kernel, blocks, kGroups * 128 + 128, Shared::kBytes, stream_of(context.stream), args);
  }

  /// x rounded to T into scratch.
  template <typename T, ColumnOrder kOrder>
  static void prepare(const Context& context, const MatmulInput& input, const TileScratch& scratch) {
    const auto chunks = static_cast<int>((input.cols + kTileChunk - 1) / kTileChunk);
    const int64_t count = x_bytes(input) / 16;
    prepare_x<T, kOrder>
        <<<blocks_for(count, 256, int64_t{context.multiprocessors} * 8), 256, 0, stream_of(context.stream)>>>(
            input.x, static_cast<int>(input.m), static_cast<int>(input.cols), chunks, kColumns, count,
            reinterpret_cast<uint4*>(scratch.x));
  }
};

/// Calls body(integral_constant columns, integral_constant groups) with the tile for m rows of x.
template <typename Body>
void with_tile_shape(int64_t m, const Body& body) {
  if (m <= 16)
    body(std::integral_constant<int, 16>{}, std::integral_constant<int, 4>{});
  else if (m <= 32)
    body(std::integral_constant<int, 32>{}, std::integral_constant<int, 4>{});
  else if (m <= 64)
    body(std::integral_constant<int, 64>{}, std::integral_constant<int, 4>{});
  else if (m <= 128)
    body(std::integral_constant<int, 128>{}, std::integral_constant<int, 2>{});
  else
    body(std::integral_constant<int, 256>{}, std::integral_constant<int, 2>{});
}

}  // namespace nibble::kernels::cuda
