// The CUDA backend: kernels for NVIDIA GPUs of compute capability 7.5 and up.
#pragma once

#include <string>

#include "kernels/kernels.h"

namespace nibble::kernels::cuda {

/// nullptr if this binary was built without nvcc. Whether a GPU is there: device/cuda.h.
const Kernels* table();

/// "13.1.0": of NVIDIA's cuBLASLt, which products of many rows run on; nothing if this machine has none.
std::string library_version();

/// What Context::capability must be for the current GPU: 90 for compute capability 9.0 with code for it, else at most
/// 89 and at most what the code was compiled for (75 for portable code of 7.5 on any newer GPU). 0: no code for this
/// GPU.
int usable_capability(int device_capability);

}  // namespace nibble::kernels::cuda
