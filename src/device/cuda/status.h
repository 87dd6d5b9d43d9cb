// CUDA's error codes as nibble's errors.
#pragma once

#include <cuda_runtime_api.h>

#include <string_view>

namespace nibble::device {

/// Errors: out_of_memory or device, naming `what` was tried, if `status` is not success.
void check_cuda(cudaError_t status, std::string_view what);

}  // namespace nibble::device
