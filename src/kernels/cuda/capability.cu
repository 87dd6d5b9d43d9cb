// The compute capability that kernels may count on: that of the code which was compiled, not only of the GPU.
#include <algorithm>

#include "kernels/cuda/table.h"

namespace nibble::kernels::cuda {
namespace {

__global__ void probe() {}

}  // namespace

int usable_capability(int device_capability) {
#ifdef NIBBLE_HAS_SM90
  if (device_capability == 90) return 90;  // machine code with everything that this capability has
#endif
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, probe) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  // Portable code of 9.0 lacks what only 9.0 itself has.
  constexpr int kMostPortable = 89;
  return std::min({device_capability, attributes.ptxVersion, kMostPortable});
}

}  // namespace nibble::kernels::cuda
