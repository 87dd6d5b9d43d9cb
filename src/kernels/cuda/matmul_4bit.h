// The ways to multiply by 4-bit weights, each compiled in a file of its own: matmul_4bit.cu picks one for a call. T is
// __nv_bfloat16 or __half, what x and the decoded weights are rounded to; bool: whether the call was taken.
#pragma once

#include "kernels/cuda/device/job.cuh"

namespace nibble::kernels::cuda {

/// 1 to 8 rows of x, few_rows_4bit.cuh; any number of them if their bits must not depend on it.
template <typename T, bool kNested>
bool multiply_few(const Context& context, const Fused4BitArgs& args);

/// Up to kTileRows rows of x, tile_4bit.cuh, without a norm, gated up to 32 rows in bf16; blocks and columns are
/// multiples of 64.
template <typename T>
bool multiply_tiles(const Context& context, const Fused4BitArgs& args);

/// More rows of x, pair_4bit.cuh; blocks and columns are multiples of 64.
template <typename T>
bool multiply_pairs(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count);

/// Very many rows of x, turns_4bit.cuh or ahead_4bit.cuh; blocks and columns are multiples of 64. False if neither
/// suits; bf16 only.
template <typename T>
bool multiply_ahead(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count);

/// Any number of rows of x, tile.cuh; blocks and columns are multiples of 32.
template <typename T>
void multiply_wide_tiles(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count);

/// All jobs by cuBLASLt, panels of rows of a weight at a time, or none.
template <typename T>
bool multiply_by_library(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count);

/// Rows of x up to which tile_4bit.cuh wins over pair_4bit.cuh.
inline constexpr int64_t kTileRows = 128;

inline bool is_nested(const Matmul4BitJob& job) { return job.absmax.values == nullptr; }

/// What every job of a call must be for the tensor core kernels, and alike in what a launch has one of.
bool is_regular(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count,
                int64_t min_block);

/// The jobs of a launch whose tiles have tile_rows rows of weights.
DeviceJobs with_weights(const Matmul4BitJob* jobs, int64_t count, int tile_rows);

/// A factor that brings the code book's values near bf16 ones, so that rounding them costs half of what rounding each
/// weight would; FP4's become exact.
float book_scale(const float* code_book, DType compute);

}  // namespace nibble::kernels::cuda
