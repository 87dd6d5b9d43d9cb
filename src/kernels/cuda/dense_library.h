// NVIDIA's dense matmul, cuBLASLt, opened when first asked for; nothing fails if it isn't there.
#pragma once

#include "kernels/kernels.h"

namespace nibble::kernels::cuda {

/// Scratch that dense_multiply wants, 256-byte aligned.
inline constexpr int64_t kDenseLibraryBytes = int64_t{33} << 20;

/// True if the library is there.
bool has_dense_library();

/// What dense_multiply asks of a result: 16-byte aligned rows and bias.
bool suits_dense_library(const MatmulOutput& out);

/// y = x (m, cols) . w (rows, cols)^T with bias and accumulation as MatmulOutput says, all in device memory; x and w
/// are bf16 or f16, 16-byte aligned, cols a multiple of 8; y is f32 or bf16. The same bits in every run. False if the
/// library is missing or has nothing for this shape; then nothing was launched.
bool dense_multiply(const Context& context, const void* x, const void* w, DType dtype, int64_t m, int64_t rows,
                    int64_t cols, const MatmulOutput& out, void* scratch);

}  // namespace nibble::kernels::cuda
