// What a recorded graph's kernels are to a decode program (device/program.cuh).
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/device/program.cuh"

namespace nibble::kernels::cuda {

/// Which weights a product has: a program has one kind of them.
struct ProductKind {
  DType compute = DType::f32;
  bool is_nested = false;
  bool operator==(const ProductKind&) const = default;
};

/// False if the kernel is not few_rows_kernel over 4-bit weights; else its arguments.
bool read_product(const cudaKernelNodeParams& kernel, ProductKind& kind, FewRowsArgs& args);

/// False if the kernel is not decode_kernel over new tokens of a bf16 cache, or has too many of them; else its
/// arguments.
bool read_attention(const cudaKernelNodeParams& kernel, ProgramAttention& attention);

}  // namespace nibble::kernels::cuda
