// Programmatic dependent launch: a kernel's blocks come to their places while the kernel before still works.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/device/async.cuh"
#include "kernels/kernels.h"

namespace nibble::kernels::cuda {

/// Until here a kernel may only read what no kernel in flight writes, such as weights. From here on all that came
/// before is done; and the next kernel may come to its place.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  wait_for_previous_launch();
  allow_next_launch();
#endif
}

/// Launches a kernel that calls wait_for_previous() in every thread before it touches what others write.
template <typename... Parameters, typename... Arguments>
void launch_dependent(const Context& context, void (*kernel)(Parameters...), dim3 grid, unsigned threads,
                      size_t shared_bytes, const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(context.stream);
#ifdef NIBBLE_HAS_SM90
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = context.capability == 90 ? 1 : 0;
#endif
  cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace nibble::kernels::cuda
