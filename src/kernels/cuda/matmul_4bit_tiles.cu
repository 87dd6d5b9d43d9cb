// 4-bit weights by up to 128 rows of x.
#include "kernels/cuda/device/launch_tiles_4bit.cuh"

namespace nibble::kernels::cuda {
namespace {

template <typename T, typename Shape>
bool multiply_tiles_of(const Context& context, const Fused4BitArgs& args) {
  return launch_tiles<T, Shape>(tile_4bit_kernel<T, Shape>, context, args);
}

/// For more than 32 rows: early absmax, 128 weight rows, one block on a multiprocessor.
template <typename T, int kColumns, int kDepthGroups>
bool multiply_cut_or_not(const Context& context, const Fused4BitArgs& args) {
  using Shape = Tile4BitShape<false, kColumns, 2, kDepthGroups, 1>;
  if constexpr (std::is_same_v<T, __half>) {
    return multiply_tiles_of<T, Shape>(context, args);
  } else {
    using Cut = Tile4BitShape<false, kColumns, 2, kDepthGroups, 1, false, true>;
    return launch_tiles<T, Shape>(tile_4bit_kernel<T, Shape>, context, args, tile_4bit_kernel<T, Cut>);
  }
}

}  // namespace

/// By the tile for m rows of x, at most kTileRows; f16 has fewer, to keep the build small.
template <typename T>
bool multiply_tiles(const Context& context, const Fused4BitArgs& args) {
  const int64_t m = args.input.m;
  if constexpr (!std::is_same_v<T, __half>) {
    if (args.is_gated && m <= 16) return multiply_tiles_of<T, Tile4BitShape<true, 16, 2, 1, 2, true>>(context, args);
    if (args.is_gated && m <= 32) return multiply_tiles_of<T, Tile4BitShape<true, 32, 2, 2, 1, true>>(context, args);
    if (m <= 16) return multiply_tiles_of<T, Tile4BitShape<true, 16, 2, 1, 2>>(context, args);
    if (m <= 32) return multiply_tiles_of<T, Tile4BitShape<true, 32, 2, 2, 1>>(context, args);
  }
  if (args.is_gated) return false;
  if (m <= 64) return multiply_cut_or_not<T, 64, 2>(context, args);
  return multiply_cut_or_not<T, 128, 1>(context, args);
}

template bool multiply_tiles<__nv_bfloat16>(const Context& context, const Fused4BitArgs& args);
template bool multiply_tiles<__half>(const Context& context, const Fused4BitArgs& args);

}  // namespace nibble::kernels::cuda
