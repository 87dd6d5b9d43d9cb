// NVIDIA's dense matmul, cuBLASLt, opened when first asked for; nothing fails if it isn't there.
#pragma once

#include <string>

#include "kernels/kernels.h"

namespace nibble::kernels::cuda {

/// Scratch that dense_multiply wants, 256-byte aligned.
inline constexpr int64_t kDenseLibraryBytes = int64_t{33} << 20;

/// True if the library is there.
bool has_dense_library();

/// "13.1.0", or nothing if it isn't.
std::string dense_library_version();

/// What dense_multiply asks of a result: 16-byte aligned rows and bias.
bool suits_dense_library(const MatmulOutput& out);

/// True if dense_multiply would take such a product.
bool takes_dense_multiply(const Context& context, DType dtype, int64_t m, int64_t rows, int64_t cols,
                          const MatmulOutput& out);

/// y = x (m, cols) . w (rows, cols)^T with bias and accumulation as MatmulOutput says, all in device memory; x and w
/// are bf16 or f16, 16-byte aligned, cols a multiple of 8; y is f32 or bf16. The same bits in every run. False if the
/// library is missing or has nothing for this shape; then nothing was launched.
bool dense_multiply(const Context& context, const void* x, const void* w, DType dtype, int64_t m, int64_t rows,
                    int64_t cols, const MatmulOutput& out, void* scratch);

/// A matrix of bf16 or f16 whose rows, or columns if it is transposed, start `stride` elements apart.
struct DenseMatrix {
  const void* data;
  int64_t stride;
  bool is_transposed;
};

/// out (m, n) (=, or += if accumulate) a (m, k) . b (k, n); strides are multiples of 8, pointers 16-byte aligned.
struct DenseProduct {
  DenseMatrix a, b;
  int64_t m, n, k;
  void* out;  // row i at out + i * out_stride, of out_dtype: f32 or bf16
  int64_t out_stride;
  DType out_dtype = DType::f32;
  bool accumulate = false;
  DType dtype = DType::bf16;  // of a and b
};
/// As dense_multiply.
bool dense_product(const Context& context, const DenseProduct& product, void* scratch);

}  // namespace nibble::kernels::cuda
