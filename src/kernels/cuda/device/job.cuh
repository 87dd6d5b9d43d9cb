// What a matmul launch knows of its jobs: the weight's rows laid end to end in tiles, and where each result goes.
#pragma once

#include "kernels/cuda/device/element.cuh"
#include "kernels/kernels.h"

namespace nibble::kernels::cuda {

inline constexpr int kMaxJobs = 4;

/// Codes and scales of one weight; what a family does not have is null.
struct DeviceWeight {
  const uint8_t* data;  // rows of `row_bytes`
  Absmax absmax;        // 4 bits; LLM.int8(): values (rows)
  int block_shift;      // log2 of the block
};

struct DeviceJob {
  DeviceWeight weight;
  MatmulOutput out;
  int rows;
  int first_tile;  // of all jobs' tiles in a row
};

struct DeviceJobs {
  DeviceJob jobs[kMaxJobs];
  int count;
  int tiles;

  __device__ __forceinline__ const DeviceJob& of_tile(int tile) const {
    int j = 0;
#pragma unroll
    for (int next = 1; next < kMaxJobs; ++next)
      if (next < count && tile >= jobs[next].first_tile) j = next;
    return jobs[j];
  }
};

/// The activations on the left, f32 or bf16.
struct DeviceX {
  const void* data;
  bool is_bf16;

  explicit DeviceX(const MatmulInput& input) : data(input.x), is_bf16(input.x_dtype == DType::bf16) {}
  DeviceX() = default;

  __device__ __forceinline__ float operator[](int64_t i) const {
    return is_bf16 ? to_float(static_cast<const __nv_bfloat16*>(data)[i]) : static_cast<const float*>(data)[i];
  }
  /// Elements i to i + 3, aligned to their whole size.
  __device__ __forceinline__ float4 four_at(int64_t i) const {
    if (!is_bf16) return *reinterpret_cast<const float4*>(static_cast<const float*>(data) + i);
    const uint2 v = *reinterpret_cast<const uint2*>(static_cast<const __nv_bfloat16*>(data) + i);
    return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u), __uint_as_float(v.y << 16),
                       __uint_as_float(v.y & 0xffff0000u));
  }
};

/// `target` (=, or += if accumulate) sum.
template <typename T>
__device__ __forceinline__ void put_at(T* target, float sum, bool accumulate) {
  *target = from_float<T>(accumulate ? to_float(*target) + sum : sum);
}

/// y[i, n] from a finished sum.
__device__ __forceinline__ void put(const MatmulOutput& out, int64_t i, int64_t n, float sum) {
  if (out.bias) sum += out.bias[n];
  const int64_t at = i * out.y_stride + n;
  if (out.y_dtype == DType::bf16)
    put_at(static_cast<__nv_bfloat16*>(out.y) + at, sum, out.accumulate);
  else
    put_at(static_cast<float*>(out.y) + at, sum, out.accumulate);
}

/// `count` rows of x from `first` on.
inline MatmulInput rows_of(const MatmulInput& input, int64_t first, int64_t count) {
  MatmulInput part = input;
  part.x = static_cast<const uint8_t*>(input.x) + first * input.cols * size_of(input.x_dtype);
  part.m = count;
  return part;
}

/// The output from y[row, column] on.
inline MatmulOutput output_from(const MatmulOutput& out, int64_t row, int64_t column) {
  MatmulOutput part = out;
  part.y = static_cast<uint8_t*>(out.y) + (row * out.y_stride + column) * size_of(out.y_dtype);
  if (out.bias) part.bias += column;
  return part;
}

/// Fills in everything but the weights.
template <typename Job>
DeviceJobs device_jobs(const Job* jobs, int64_t count, int tile_rows) {
  DeviceJobs all{};
  all.count = static_cast<int>(count);
  for (int64_t j = 0; j < count; ++j) {
    all.jobs[j].out = jobs[j].out;
    all.jobs[j].rows = static_cast<int>(jobs[j].rows);
    all.jobs[j].first_tile = all.tiles;
    all.tiles += static_cast<int>((jobs[j].rows + tile_rows - 1) / tile_rows);
  }
  return all;
}

}  // namespace nibble::kernels::cuda
