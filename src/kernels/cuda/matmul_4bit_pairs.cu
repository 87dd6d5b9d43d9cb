// 4-bit weights by more than 128 rows of x.
#include "kernels/cuda/device/launch_tiles_4bit.cuh"
#include "kernels/cuda/device/pair_4bit.cuh"

namespace nibble::kernels::cuda {
namespace {

template <typename T, typename Shape>
bool multiply_pairs_of(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
  const Fused4BitArgs args{.input = input, .jobs = jobs, .count = count};
  if constexpr (std::is_same_v<T, __half>)
    return launch_tiles<T, Shape>(pair_4bit_kernel<T, Shape>, context, args);
  else
    return launch_tiles<T, Shape>(pair_4bit_kernel<T, Shape>, context, args,
                                  pair_4bit_kernel<T, Pair4BitShape<Shape::columns, true>>);
}

}  // namespace

/// By the tile that wastes least of m rows of x; f16 has one, to keep the build small.
template <typename T>
bool multiply_pairs(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
  if constexpr (!std::is_same_v<T, __half>)
    if ((input.m + 191) / 192 * 192 < (input.m + 255) / 256 * 256)
      return multiply_pairs_of<T, Pair4BitShape<192>>(context, input, jobs, count);
  return multiply_pairs_of<T, Pair4BitShape<256>>(context, input, jobs, count);
}

template bool multiply_pairs<__nv_bfloat16>(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs,
                                            int64_t count);
template bool multiply_pairs<__half>(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs,
                                     int64_t count);

}  // namespace nibble::kernels::cuda
