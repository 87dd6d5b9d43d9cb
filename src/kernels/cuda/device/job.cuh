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
    for (int next = 1; next < count; ++next)
      if (tile >= jobs[next].first_tile) j = next;
    return jobs[j];
  }
};

/// y[i, n] from a finished sum.
__device__ __forceinline__ void put(const MatmulOutput& out, int64_t i, int64_t n, float sum) {
  if (out.bias) sum += out.bias[n];
  float& target = out.y[i * out.y_stride + n];
  target = out.accumulate ? target + sum : sum;
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
