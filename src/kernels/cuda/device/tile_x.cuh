// x for tile.cuh: rounded, and in the order in which the tensor cores read it from shared memory.
#pragma once

#include "kernels/cuda/device/async.cuh"
#include "kernels/cuda/device/tile.cuh"

namespace nibble::kernels::cuda {

/// Columns of a chunk that a thread of tile.cuh decodes: 32 together (4 bits), or 8 in each of four runs of 32 (16
/// bits).
enum class ColumnOrder { runs_of_32, runs_of_8 };

/// out[column tile][chunk][8 columns: 16 of them][row]: 16 bytes. Zeros past m and cols; cols a multiple of 8.
template <typename T, ColumnOrder kOrder>
__global__ void __launch_bounds__(256)
    prepare_x(const float* x, int m, int cols, int chunks, int columns, int64_t count, uint4* out) {
#if __CUDA_ARCH__ >= 900
  allow_next_launch();
#endif
  for (int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x; i < count; i += int64_t{gridDim.x} * 256) {
    const int k8 = static_cast<int>(i / 8 % 16);
    const int64_t rest = i / 128;
    const int chunk = static_cast<int>(rest % chunks);
    const int row = static_cast<int>(rest / chunks) * 8 + static_cast<int>(i % 8);
    float values[8];
#pragma unroll
    for (int quad = 0; quad < 4; ++quad) {
      const int column = chunk * kTileChunk +
                         (kOrder == ColumnOrder::runs_of_32 ? quad * 32 + 2 * k8 : k8 / 4 * 32 + quad * 8 + k8 % 4 * 2);
      const bool is_inside = row < m && column < cols;
      const float* from = x + int64_t{row} * cols + column;
      values[2 * quad] = is_inside ? from[0] : 0.0f;
      values[2 * quad + 1] = is_inside ? from[1] : 0.0f;
    }
    uint4 v;
    T* to = reinterpret_cast<T*>(&v);
#pragma unroll
    for (int j = 0; j < 8; ++j) to[j] = from_float<T>(values[j]);
    out[((static_cast<int64_t>(row / columns) * chunks + chunk) * 16 + k8) * columns + row % columns] = v;
  }
}

}  // namespace nibble::kernels::cuda
