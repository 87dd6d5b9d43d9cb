// 4-bit weights by up to 128 rows of x.
#include "kernels/cuda/device/launch_tiles_4bit.cuh"

namespace nibble::kernels::cuda {
namespace {

template <typename T, typename Shape>
bool multiply_tiles_of(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
  return launch_tiles<T, Shape>(tile_4bit_kernel<T, Shape>, context, input, jobs, count);
}

}  // namespace

/// By the tile for m rows of x, at most kTileRows; f16 has fewer, to keep the build small.
template <typename T>
bool multiply_tiles(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
  if constexpr (!std::is_same_v<T, __half>) {
    if (input.m <= 16) return multiply_tiles_of<T, Tile4BitShape<true, 16, 2, 1, 2>>(context, input, jobs, count);
    if (input.m <= 32) return multiply_tiles_of<T, Tile4BitShape<true, 32, 2, 2, 1>>(context, input, jobs, count);
  }
  if (input.m <= 64) return multiply_tiles_of<T, Tile4BitShape<false, 64, 2, 2, 1>>(context, input, jobs, count);
  return multiply_tiles_of<T, Tile4BitShape<false, 128, 2, 1, 1>>(context, input, jobs, count);
}

template bool multiply_tiles<__nv_bfloat16>(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs,
                                            int64_t count);
template bool multiply_tiles<__half>(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs,
                                     int64_t count);

}  // namespace nibble::kernels::cuda
