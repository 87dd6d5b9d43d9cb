// Launches of the matmul kernels: shared memory, grid, scratch.
#pragma once

#include <algorithm>
#include <type_traits>

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

/// Starts while the launch before finishes; the kernel itself waits where it must. `cluster` blocks share memory.
template <typename Kernel, typename Args>
void launch_early(Kernel kernel, unsigned blocks, unsigned threads, size_t shared, cudaStream_t stream,
                  const Args& args, unsigned cluster = 1) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  cudaLaunchKernelEx(&config, kernel, args);
}

template <typename Weights>
int few_rows_stride(int64_t cols) {
  return static_cast<int>((cols + Weights::kChunk - 1) / Weights::kChunk * Weights::kChunk + Weights::kXPadding);
}

/// Rows of x that one launch takes; 0 if the columns are too many.
template <typename Weights>
int64_t few_rows_limit(const Context& context, int64_t cols) {
  if (cols > Weights::kMaxCols) return 0;
  const int stride = few_rows_stride<Weights>(cols), extra = Weights::extra_bytes(cols);
  const int64_t row = int64_t{stride} * static_cast<int64_t>(sizeof(typename Weights::X));
  const int64_t room = shared_limit(context.capability) - few_rows_shared<Weights>(0, stride, extra);
  return std::clamp<int64_t>(room / row, 0, kFewRowsMax);
}

/// args: jobs and what Weights reads; the rest is filled in here.
template <typename Weights>
void launch_few_rows(const Context& context, const MatmulInput& input, FewRowsArgs& args) {
  args.x = DeviceX(input);
  args.m = static_cast<int>(input.m);
  args.cols = static_cast<int>(input.cols);
  args.x_stride = few_rows_stride<Weights>(input.cols);
  args.extra_bytes = Weights::extra_bytes(input.cols);
  const auto kernel = few_rows_kernel<Weights>;
  const auto shared = static_cast<int>(few_rows_shared<Weights>(args.m, args.x_stride, args.extra_bytes));
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  const auto blocks = static_cast<unsigned>(std::min(args.jobs.tiles, context.multiprocessors));
  launch_dependent(context, kernel, blocks, kFewRowsWarps * 32, static_cast<size_t>(shared), args);
}

/// Any number of rows of x, `limit` a launch: a row's bits do not depend on how many there are.
template <typename Weights>
void launch_few_rows_each(const Context& context, const MatmulInput& input, FewRowsArgs& args, int64_t limit) {
  const DeviceJobs jobs = args.jobs;
  const MatmulOutput gated_out = args.gated_out;
  for (int64_t first = 0; first < input.m; first += limit) {
    if (args.is_gated) args.gated_out = output_from(gated_out, first, 0);
    for (int j = 0; j < jobs.count; ++j) args.jobs.jobs[j].out = output_from(jobs.jobs[j].out, first, 0);
    launch_few_rows<Weights>(context, rows_of(input, first, std::min(limit, input.m - first)), args);
  }
}

/// Scratch of a tile launch: prepared x, then a partial tile for each block.
struct TileScratch {
  uint8_t* x;
  float* partials;
  float* more;  // what the caller asked for beside
};

template <typename Weights, typename Shape>
struct TileLaunch {
  static constexpr int kColumns = Shape::columns, kGroups = Shape::groups;
  static constexpr int kRows = 64 * kGroups;

  static int64_t x_bytes(const MatmulInput& input) {
    const int64_t tiles = (input.m + kColumns - 1) / kColumns, chunks = (input.cols + kTileChunk - 1) / kTileChunk;
    return tiles * chunks * Weights::kHalves * kColumns * Weights::kXBytes;
  }

  static TileScratch reserve(const Context& context, const MatmulInput& input, int64_t more_bytes = 0) {
    const int64_t partials = int64_t{context.multiprocessors} * kRows * kColumns;
    auto* memory = static_cast<uint8_t*>(context.scratch->reserve(x_bytes(input) + partials * 4 + more_bytes));
    auto* floats = reinterpret_cast<float*>(memory + x_bytes(input));
    return {memory, floats, floats + partials};
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

  /// x rounded to T, and nested absmax in fp32, into scratch.
  template <typename T, ColumnOrder kOrder>
  static void prepare(const Context& context, const MatmulInput& input, const TileScratch& scratch,
                      PrepareArgs args = {}) {
    args.x = input.x;
    args.m = static_cast<int>(input.m);
    args.cols = static_cast<int>(input.cols);
    args.chunks = static_cast<int>((input.cols + kTileChunk - 1) / kTileChunk);
    args.columns = kColumns;
    args.count = x_bytes(input) / 16;
    args.out = reinterpret_cast<uint4*>(scratch.x);
    const int64_t most = int64_t{context.multiprocessors} * 8;
    const unsigned x_blocks = blocks_for(args.count, 256, most);
    args.x_blocks = static_cast<int>(x_blocks);
    int64_t blocks = 0;
    for (const ExpandedAbsmax& job : args.absmax) blocks = std::max(blocks, job.blocks);
    with_x_type(input, [&](auto element) {
      prepare_kernel<T, kOrder, decltype(element)>
          <<<x_blocks + blocks_for(blocks, 256 * 4, most), 256, 0, stream_of(context.stream)>>>(args);
    });
  }
};

/// kColumns rows of x by 64 * kGroups rows of weights.
template <int kColumns, int kGroups>
struct TileShape {
  static constexpr int columns = kColumns, groups = kGroups;
};

/// Calls body(TileShape) with the tile for m rows of x.
template <typename T, typename Body>
void with_plain_tile_shape(int64_t m, const Body& body) {
  if (m <= 64) return body(TileShape<64, 2>{});
  body(TileShape<256, 2>{});
}

}  // namespace nibble::kernels::cuda
