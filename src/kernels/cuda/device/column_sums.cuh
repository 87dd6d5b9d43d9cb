// Sums over the rows of each column in a fixed order: chunks of rows, then the chunks.
#pragma once

#include "kernels/cuda/device/element.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kColumnThreads = 32, kRowThreads = 8;

/// Two sums at once, of what a term gives for (row, column).
struct ColumnTerm {
  float first, second;
};

/// Rows of a chunk: a function of their number alone, so that sums are.
inline int64_t column_chunk_rows(int64_t rows) { return rows <= 64 * 256 ? 64 : (rows + 255) / 256; }
inline int64_t column_chunks(int64_t rows) { return (rows + column_chunk_rows(rows) - 1) / column_chunk_rows(rows); }
inline int64_t column_sums_bytes(int64_t rows, int64_t cols) {
  return column_chunks(rows) * cols * static_cast<int64_t>(sizeof(ColumnTerm));
}

/// Grid: (columns, chunks).
template <typename Term>
__global__ void __launch_bounds__(kColumnThreads* kRowThreads)
    column_chunk_kernel(const __grid_constant__ Term term, int64_t rows, int64_t cols, int64_t chunk_rows,
                        ColumnTerm* partials) {
  __shared__ ColumnTerm sums[kRowThreads][kColumnThreads];
  const int64_t column = int64_t{blockIdx.x} * kColumnThreads + threadIdx.x;
  const int64_t begin = blockIdx.y * chunk_rows, end = min(rows, begin + chunk_rows);
  ColumnTerm sum{0, 0};
  for (int64_t row = begin + threadIdx.y; column < cols && row < end; row += kRowThreads) {
    const ColumnTerm value = term(row, column);
    sum.first += value.first;
    sum.second += value.second;
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= cols) return;
#pragma unroll
  for (int i = 1; i < kRowThreads; ++i) {
    sum.first += sums[i][threadIdx.x].first;
    sum.second += sums[i][threadIdx.x].second;
  }
  partials[blockIdx.y * cols + column] = sum;
}

/// Adds to `first` and `second`, unless they are null.
inline __global__ void column_total_kernel(const ColumnTerm* partials, int64_t chunks, int64_t cols, float* first,
                                           float* second) {
  const int64_t column = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (column >= cols) return;
  ColumnTerm sum{0, 0};
#pragma unroll 8
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    sum.first += partials[chunk * cols + column].first;
    sum.second += partials[chunk * cols + column].second;
  }
  if (first) first[column] += sum.first;
  if (second) second[column] += sum.second;
}

/// `partials`: column_sums_bytes() of scratch.
template <typename Term>
void add_column_sums(const Term& term, int64_t rows, int64_t cols, void* partials, float* first, float* second,
                     cudaStream_t stream) {
  auto* sums = static_cast<ColumnTerm*>(partials);
  const dim3 grid(blocks_for(cols, kColumnThreads), static_cast<unsigned>(column_chunks(rows)));
  column_chunk_kernel<<<grid, dim3(kColumnThreads, kRowThreads), 0, stream>>>(term, rows, cols, column_chunk_rows(rows),
                                                                              sums);
  column_total_kernel<<<blocks_for(cols, 64), 64, 0, stream>>>(sums, column_chunks(rows), cols, first, second);
}

}  // namespace nibble::kernels::cuda
