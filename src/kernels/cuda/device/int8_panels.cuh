// LLM.int8() for many rows of x: both sides of the outlier columns as 16-bit panels of 64 columns.
#pragma once

#include "kernels/cuda/device/int8_left.cuh"

namespace nibble::kernels::cuda {

/// The weights of a call's jobs, whose panels stand one after the other: [panel][row of all jobs].
struct OutlierWeights {
  DeviceJobs jobs;  // first_tile: the job's first row
  int rows;         // of all jobs
  uint8_t* panels;
};

__device__ __forceinline__ float decode_weight(int8_t code, float absmax) {
  return __fmul_rn(__fmul_rn(static_cast<float>(code), absmax), 1.0f / 127.0f);
}

template <typename T>
__device__ __forceinline__ uint4 decode_eight(uint2 packed, float absmax) {
  const auto* codes = reinterpret_cast<const int8_t*>(&packed);
  float values[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) values[j] = decode_weight(codes[j], absmax);
  return Vector8<T>::pack(values).words[0];
}

/// Eight of the outlier columns of a row of x, from place `first` of the list; those columns' codes become zero.
template <typename T>
__device__ __forceinline__ uint4 gather_x(const DeviceX& x, int64_t row, int cols, const Int8Left& left, int first) {
  float values[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const int column = left.columns[first + j];
    values[j] = column < 0 ? 0.0f : x[row * cols + column];
    if (column >= 0) left.codes[row * cols + column] = 0;
  }
  return Vector8<T>::pack(values).words[0];
}

template <typename T>
__device__ __forceinline__ uint4 gather_w(const DeviceJob& job, int64_t row, int cols, const Int8Left& left,
                                          int first) {
  const auto* w = reinterpret_cast<const int8_t*>(job.weight.data) + row * cols;
  uint2 packed = make_uint2(0, 0);
  auto* codes = reinterpret_cast<int8_t*>(&packed);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const int column = left.columns[first + j];
    codes[j] = column < 0 ? int8_t{0} : w[column];
  }
  return decode_eight<T>(packed, job.weight.absmax.values[row]);
}

/// The listed columns of both sides, eight a thread.
template <typename T>
__device__ __forceinline__ void gather_listed(const DeviceX& x, int m, int cols, const Int8Left& left, int panel_count,
                                              const OutlierWeights& weights) {
  const auto panels = static_cast<uint32_t>(panel_count), groups = static_cast<uint32_t>(m + weights.rows) * panels;
  const int lane = threadIdx.x % 8;
  for (uint32_t group = (blockIdx.x * 256 + threadIdx.x) / 8; group < groups; group += gridDim.x * 32) {
    const auto row = static_cast<int>(group / panels);
    const int panel = static_cast<int>(group % panels), first = panel * kOutlierPanel + lane * 8;
    if (row < m) {
      reinterpret_cast<uint4*>(left.panels_x)[(int64_t{panel} * m + row) * 8 + lane] =
          gather_x<T>(x, row, cols, left, first);
    } else {
      const int in_jobs = row - m;
      const DeviceJob& job = weights.jobs.of_tile(in_jobs);
      reinterpret_cast<uint4*>(weights.panels)[(int64_t{panel} * weights.rows + in_jobs) * 8 + lane] =
          gather_w<T>(job, in_jobs - job.first_tile, cols, left, first);
    }
  }
}

/// The codes of a row of x become zero in outlier columns, where x itself is the left side. A warp.
__device__ __forceinline__ void clear_outlier_codes(int row, int cols, const Int8Left& left, int live_chunks) {
  for (int k = 0; k < live_chunks; ++k) {  // nobody reads the others
    const int first = left.live_chunks[k] * kInt8Chunk + static_cast<int>(threadIdx.x) % 32 * 4;
    if (first >= cols) continue;
    auto* codes = reinterpret_cast<uint32_t*>(left.codes + int64_t{row} * cols + first);
    *codes &= ~(*reinterpret_cast<const uint32_t*>(left.flags + first) * 255);
  }
}

/// All columns of a row of x, zeros in those without outliers; the codes of the others become zero. A warp.
template <typename T>
__device__ __forceinline__ void widen_x_row(const DeviceX& x, int row, int m, int cols, const Int8Left& left,
                                            const OutlierSummary& summary) {
  const int lane = threadIdx.x % 32;
  const bool is_aligned = reinterpret_cast<uint64_t>(x.data) % 16 == 0;
  const int64_t start = int64_t{row} * cols;
#pragma unroll 4
  for (int first = lane * 8; first < summary.panels * kOutlierPanel; first += 256) {
    float values[8] = {};
    if (first < cols) {
      const uint2 flags = *reinterpret_cast<const uint2*>(left.flags + first);
      const float4 a = four_of(x, start + first, is_aligned), b = four_of(x, start + first + 4, is_aligned);
      const float all[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
      for (int j = 0; j < 8; ++j) values[j] = (j < 4 ? flags.x : flags.y) >> (8 * (j % 4)) & 1 ? all[j] : 0.0f;
      if (summary.live_chunks > 0) {  // otherwise nobody reads codes
        uint2* codes = reinterpret_cast<uint2*>(left.codes + start + first);
        const uint2 kept = *codes;
        *codes = make_uint2(kept.x & ~(flags.x * 255), kept.y & ~(flags.y * 255));
      }
    }
    reinterpret_cast<uint4*>(left.panels_x)[(int64_t{first / kOutlierPanel} * m + row) * 8 + lane % 8] =
        Vector8<T>::pack(values).words[0];
  }
}

/// All columns of a weight row, zeros in those without outliers. A warp.
template <typename T>
__device__ __forceinline__ void widen_w_row(const OutlierWeights& weights, int row, int cols, const Int8Left& left,
                                            int panels) {
  const int lane = threadIdx.x % 32;
  const DeviceJob& job = weights.jobs.of_tile(row);
  const int in_job = row - job.first_tile;
  const auto* w = reinterpret_cast<const int8_t*>(job.weight.data) + int64_t{in_job} * cols;
  const float absmax = job.weight.absmax.values[in_job];
  uint4* to = reinterpret_cast<uint4*>(weights.panels) + int64_t{row} * 8 + lane % 8;
  constexpr int kLoads = 4;  // under way at once
  for (int group = lane * 8; group < panels * kOutlierPanel; group += kLoads * 256) {
    uint2 codes[kLoads], flags[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int first = group + j * 256;
      codes[j] = flags[j] = make_uint2(0, 0);
      if (first < cols) {
        codes[j] = __ldcs(reinterpret_cast<const uint2*>(w + first));
        flags[j] = *reinterpret_cast<const uint2*>(left.flags + first);
      }
    }
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int first = group + j * 256;
      if (first >= panels * kOutlierPanel) break;
      codes[j] = make_uint2(codes[j].x & (flags[j].x * 255), codes[j].y & (flags[j].y * 255));
      to[int64_t{first / kOutlierPanel} * weights.rows * 8] = decode_eight<T>(codes[j], absmax);
    }
  }
}

template <typename T>
__device__ __forceinline__ void gather_outliers(const DeviceX& x, int m, int cols, const Int8Left& left,
                                                const OutlierSummary& summary, const OutlierWeights& weights) {
  if (!summary.has_all_columns) return gather_listed<T>(x, m, cols, left, summary.panels, weights);
  const int first = blockIdx.x + threadIdx.x / 32 * gridDim.x, step = gridDim.x * 8;
  for (int row = first; row < weights.rows; row += step) widen_w_row<T>(weights, row, cols, left, summary.panels);
  for (int row = first; row < m; row += step) {
    if (summary.has_direct_x)
      clear_outlier_codes(row, cols, left, summary.live_chunks);
    else
      widen_x_row<T>(x, row, m, cols, left, summary);
  }
}

/// Panels of x and of the weights, rounded to T, or to bf16 where fp16 does not hold x. Nothing to do without outliers.
template <typename T>
__global__ void __launch_bounds__(256) gather_outliers_kernel(const DeviceX x, int m, int cols, const Int8Left left,
                                                              const __grid_constant__ OutlierWeights weights) {
  wait_for_previous();
  const OutlierSummary summary = *left.summary;
  if (summary.count == 0) return;
  if constexpr (__is_same(T, __half))
    if (summary.has_large_x) return gather_outliers<__nv_bfloat16>(x, m, cols, left, summary, weights);
  gather_outliers<T>(x, m, cols, left, summary, weights);
}

}  // namespace nibble::kernels::cuda
