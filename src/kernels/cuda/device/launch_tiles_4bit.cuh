// Launches of tile_4bit.cuh and pair_4bit.cuh, for the files that compile them.
#pragma once

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/tile_4bit.cuh"
#include "kernels/cuda/matmul_4bit.h"
#include "kernels/cuda/tensor_map.h"

namespace nibble::kernels::cuda {

/// A factor that brings NF4's values within 2^-12.6 of f16 ones, where their own rounding to bf16 costs 2^-9; FP4's
/// become exact.
inline float half_book_scale(const float* code_book) {
  if (code_book[1] == -0.6961928009986877f) return 1.6384993f;
  if (code_book[1] == 0.0052083333488553762f) return 12.0f;
  return 1.0f;
}

/// What tile_4bit.cuh and pair_4bit.cuh know of a call; x in T goes to scratch where it does not lie so already. False
/// if the driver can't describe it.
template <typename T, typename Shape>
bool describe_tiles(const Context& context, const Fused4BitArgs& fused, Tile4BitArgs& args) {
  const MatmulInput& input = fused.input;
  const Matmul4BitJob* jobs = fused.jobs;
  const int64_t count = fused.count;
  constexpr int kRows = Shape::rows / Shape::cluster;  // of a block
  TileArgs& tile = args.tile;
  tile.jobs = with_weights(jobs, count, Shape::rows);
  args.activation = fused.activation;
  args.gated_out = fused.gated_out;
  if constexpr (Shape::is_gated) {  // every tile counts as the first job's
    tile.jobs.tiles = static_cast<int>((jobs[0].rows + Shape::lower - 1) / Shape::lower);
    tile.jobs.jobs[1].first_tile = tile.jobs.tiles;
  }
  const float scale = Shape::is_late && input.compute == DType::bf16 ? book_scale(jobs[0].code_book, input.compute)
                                                                     : half_book_scale(jobs[0].code_book);
  for (int i = 0; i < 16; ++i) tile.book[i] = jobs[0].code_book[i] * scale;
  args.unscale = 1.0f / scale;
  args.is_nested = is_nested(jobs[0]);
  args.extra = Shape::extra;
  tile.m = static_cast<int>(input.m);
  tile.cols = static_cast<int>(input.cols);
  tile.chunks = static_cast<int>((input.cols + kTileChunk - 1) / kTileChunk);
  tile.column_tiles = static_cast<int>((input.m + Shape::columns - 1) / Shape::columns);
  tile.flags = context.counters;
  const int64_t x_bytes = is_rounded<T>(input) ? 0 : padded_to_256(input.m * input.cols * 2);
  const int64_t partials = int64_t{context.multiprocessors} * Shape::blocks * kRows * Shape::columns * 4;
  auto* scratch = static_cast<uint8_t*>(context.scratch->reserve(x_bytes + partials));
  tile.partials = reinterpret_cast<float*>(scratch + x_bytes);
  const void* x = x_bytes > 0 ? scratch : input.x;
  if (!describe_matrix(args.x, x, input.m, input.cols * 2, Shape::columns / Shape::cluster)) return false;
  for (int64_t j = 0; j < count; ++j)
    if (!describe_matrix(args.codes[j], jobs[j].packed, jobs[j].rows, input.cols / 2,
                         Shape::is_gated ? kRows / 2 : kRows, 64 / Shape::cluster))
      return false;
  if (x_bytes > 0) round_x(context, input, reinterpret_cast<T*>(scratch));
  return true;
}

/// Pieces of equal depth to cut each tile in. 0: the line of tiles is divided evenly, which keeps more of the
/// multiprocessors busy but lets a tile's first block add all its pieces, up to half a chunk's time for each.
inline int cuts_of(int64_t tiles, int64_t chunks, int64_t room) {
  if (room < 48) return 0;  // a slice of a GPU, where launches of several streams could hold each other's places
  for (const int cuts : {8, 4, 1})  // 2 was measured to lose
    if (tiles * cuts <= room && cuts <= chunks && (chunks + cuts - 1) / cuts <= tiles * chunks / room + (cuts + 1) / 2)
      return cuts;
  return 0;
}

/// Clusters of blocks that work on a tile together, as many as the GPU holds; cut_kernel, if any, where tiles are cut.
template <typename T, typename Shape>
bool launch_tiles(void (*kernel)(Tile4BitArgs), const Context& context, const Fused4BitArgs& fused,
                  void (*cut_kernel)(Tile4BitArgs) = nullptr) {
  Tile4BitArgs args{};
  if (!describe_tiles<T, Shape>(context, fused, args)) return false;
  const int64_t tiles = int64_t{args.tile.jobs.tiles} * args.tile.column_tiles, pieces = tiles * args.tile.chunks;
  if (pieces + tiles * args.extra > 0x7fffffff) return false;
  const int64_t room = context.multiprocessors * Shape::blocks / Shape::cluster;
  if (cut_kernel) args.cuts = cuts_of(tiles, args.tile.chunks, room);
  if (args.cuts > 1) kernel = cut_kernel;
  const auto clusters = static_cast<unsigned>(args.cuts > 0 ? tiles * args.cuts : std::min<int64_t>(pieces, room));
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kBytes);
  launch_early(kernel, Shape::cluster * clusters, Shape::all_threads, Shape::kBytes, stream_of(context.stream), args,
               Shape::cluster);
  return true;
}

}  // namespace nibble::kernels::cuda
