// Matrices as the copy engine of compute capability 9.0 sees them.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace nibble::kernels::cuda {

/// A matrix of single bytes, 16-byte aligned and with rows of a multiple of 16: boxes of `box_rows` rows by `box_cols`
/// columns, 128, 64 or 32, go to shared memory, rows of so many bytes swizzled in groups of eight, zeros outside. False
/// if the driver can't.
bool describe_matrix(CUtensorMap& map, const void* data, int64_t rows, int64_t cols, int box_rows, int box_cols = 128);

/// The same of rows that start `stride` bytes apart, a multiple of 16, with any number of columns; boxes have 128.
bool describe_rows(CUtensorMap& map, const void* data, int64_t rows, int64_t cols, int64_t stride, int box_rows);

/// A bf16 matrix whose rows start `stride` elements apart, a multiple of 8: boxes lie row by row in shared memory, rows
/// of a multiple of 8 elements.
bool describe_tiles(CUtensorMap& map, const void* data, int64_t rows, int64_t cols, int64_t stride, int box_rows,
                    int box_cols);

/// Heads of 16-bit rows: (heads, capacity, head_dim) of which the first `keys` rows of a head count; zeros come for
/// what lies beyond. Boxes of `box_rows` rows by 64 columns, swizzled as above. False if the driver can't.
bool describe_heads(CUtensorMap& map, const void* data, int64_t heads, int64_t capacity, int64_t keys, int64_t head_dim,
                    int box_rows);

/// Heads of dense bf16 (tokens, heads, head_dim); boxes of a head as above.
bool describe_tokens(CUtensorMap& map, const void* data, int64_t tokens, int64_t heads, int64_t head_dim, int box_rows);

}  // namespace nibble::kernels::cuda
