// x for tile.cuh: rounded, and in the order in which the tensor cores read it from shared memory.
#pragma once

#include "kernels/cuda/device/absmax.cuh"
#include "kernels/cuda/device/async.cuh"
#include "kernels/cuda/device/tile.cuh"
#include "kernels/cuda/device/vector.cuh"

namespace nibble::kernels::cuda {

/// Columns of a chunk that a thread of tile.cuh decodes: 32 together (4 bits), or 8 in each of four runs of 32 (16
/// bits).
enum class ColumnOrder { runs_of_32, runs_of_8 };

/// Nested absmax in fp32.
struct ExpandedAbsmax {
  Absmax absmax;
  int64_t blocks;
  float* out;
};

struct PrepareArgs {
  const void* x;
  int m, cols, chunks, columns;  // columns: rows of x a tile
  int64_t count;                 // of 16-byte pieces
  uint4* out;
  int x_blocks;  // thread blocks for x; those after them expand absmax
  ExpandedAbsmax absmax[kMaxJobs];
};

__device__ __forceinline__ void expand_absmax(const PrepareArgs& args) {
  const int64_t first = (int64_t{blockIdx.x} - args.x_blocks) * blockDim.x + threadIdx.x;
  const int64_t stride = int64_t{gridDim.x - args.x_blocks} * blockDim.x;
#pragma unroll 1
  for (const ExpandedAbsmax& job : args.absmax)
#pragma unroll 4
    for (int64_t b = first; b < job.blocks; b += stride) job.out[b] = absmax_at(job.absmax, b);
}

/// out[column tile][chunk][8 columns: 16 of them][row]: 16 bytes. Zeros past m and cols; cols a multiple of 8.
template <typename T, ColumnOrder kOrder, typename From>
__global__ void __launch_bounds__(256) prepare_kernel(const __grid_constant__ PrepareArgs args) {
  allow_next_launch_where_possible();
  if (static_cast<int>(blockIdx.x) >= args.x_blocks) {
    expand_absmax(args);
    return;
  }
  for (int64_t i = int64_t{blockIdx.x} * 256 + threadIdx.x; i < args.count; i += int64_t{args.x_blocks} * 256) {
    const int k8 = static_cast<int>(i / 8 % 16);
    const int64_t rest = i / 128;
    const int chunk = static_cast<int>(rest % args.chunks);
    const int row = static_cast<int>(rest / args.chunks) * 8 + static_cast<int>(i % 8);
    float values[8];
#pragma unroll
    for (int quad = 0; quad < 4; ++quad) {
      const int column = chunk * kTileChunk +
                         (kOrder == ColumnOrder::runs_of_32 ? quad * 32 + 2 * k8 : k8 / 4 * 32 + quad * 8 + k8 % 4 * 2);
      const bool is_inside = row < args.m && column < args.cols;
      const From* from = static_cast<const From*>(args.x) + int64_t{row} * args.cols + column;
      values[2 * quad] = is_inside ? to_float(from[0]) : 0.0f;
      values[2 * quad + 1] = is_inside ? to_float(from[1]) : 0.0f;
    }
    uint4 v;
    T* to = reinterpret_cast<T*>(&v);
#pragma unroll
    for (int j = 0; j < 8; ++j) to[j] = from_float<T>(values[j]);
    args.out[((static_cast<int64_t>(row / args.columns) * args.chunks + chunk) * 16 + k8) * args.columns +
             row % args.columns] = v;
  }
}

/// x rounded to T as it lies; count a multiple of 8, out 16-byte aligned.
template <typename T, typename From>
__global__ void __launch_bounds__(256) round_kernel(const From* x, int64_t count, T* out) {
  const bool is_aligned = reinterpret_cast<uint64_t>(x) % 16 == 0;
  for (int64_t i = (int64_t{blockIdx.x} * 256 + threadIdx.x) * 8; i < count; i += int64_t{gridDim.x} * 2048) {
    float values[8];
    if (is_aligned) {
      Vector8<From>::load(x + i).unpack(values);
    } else {
#pragma unroll
      for (int j = 0; j < 8; ++j) values[j] = to_float(x[i + j]);
    }
    *reinterpret_cast<uint4*>(out + i) = Vector8<T>::pack(values).words[0];
  }
}

/// Calls body(T{}) with the element type of x.
template <typename Body>
void with_x_type(const MatmulInput& input, const Body& body) {
  if (input.x_dtype == DType::bf16)
    body(__nv_bfloat16{});
  else
    body(float{});
}

/// True if x lies as cuBLASLt wants it for products of T.
template <typename T>
bool is_rounded(const MatmulInput& input) {
  return __is_same(T, __nv_bfloat16) && input.x_dtype == DType::bf16 && is_aligned(input.x, 16);
}

template <typename T>
void round_x(const Context& context, const MatmulInput& input, T* out) {
  const int64_t count = input.m * input.cols;
  with_x_type(input, [&](auto element) {
    using From = decltype(element);
    round_kernel<<<blocks_for(count, 2048, int64_t{context.multiprocessors} * 8), 256, 0, stream_of(context.stream)>>>(
        static_cast<const From*>(input.x), count, out);
  });
}

inline int64_t padded_to_256(int64_t size) { return (size + 255) / 256 * 256; }

}  // namespace nibble::kernels::cuda
