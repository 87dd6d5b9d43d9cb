// The CUDA backend: kernels for NVIDIA GPUs of compute capability 7.5 and up.
#pragma once

#include "kernels/kernels.h"

namespace nibble::kernels::cuda {

/// nullptr if this binary was built without nvcc. Whether a GPU is there: device/cuda.h.
const Kernels* table();

}  // namespace nibble::kernels::cuda
