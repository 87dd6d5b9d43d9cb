// 4-bit weights by few rows of x in f16.
#include "kernels/cuda/device/launch_few_rows_4bit.cuh"

namespace nibble::kernels::cuda {

template bool multiply_few<__half, false>(const Context& context, const Fused4BitArgs& args);
template bool multiply_few<__half, true>(const Context& context, const Fused4BitArgs& args);

}  // namespace nibble::kernels::cuda
