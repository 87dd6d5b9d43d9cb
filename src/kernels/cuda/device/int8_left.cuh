// LLM.int8() for many rows of x, before the product: codes and scales of x, the list of outlier columns, and both sides
// of those columns as 16-bit panels. Nothing waits for the host: how many columns there are stays on the device.
#pragma once

#include "kernels/cuda/device/dependent.cuh"
#include "kernels/cuda/device/int8_row.cuh"
#include "kernels/cuda/device/vector.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kInt8Chunk = 128;    // columns of codes that a step of the product takes
inline constexpr int kOutlierPanel = 64;  // outlier columns of a panel: as many bytes

/// What the launches know of each other. Panels hold the outlier columns alone, or, where those are at least half, all
/// columns with zeros in x for the others.
struct OutlierSummary {
  int count;   // outlier columns
  int panels;  // 0 if there are none
  int has_all_columns;
  int live_chunks;  // those with a column that is no outlier; -1: all, and there is no list of them
};

/// In scratch, for one call. The last five are null without a threshold.
struct Int8Left {
  int8_t* codes;  // (m, cols), zero in outlier columns
  float* scales;  // (m)
  OutlierSummary* summary;
  int* live_chunks;
  int* columns;       // the outlier columns, ascending; filled up to a whole panel with -1
  uint8_t* flags;     // (cols): 1 for an outlier column
  uint8_t* panels_x;  // [panel][m]: 128 bytes
};

/// In the context's counters, zero before and after: blocks that are done, whether there are outliers, flags by column.
struct OutlierFlags {
  uint32_t* done;
  uint32_t* any;
  uint8_t* of_column;

  __host__ __device__ explicit OutlierFlags(uint32_t* counters)
      : done(counters), any(counters + 1), of_column(reinterpret_cast<uint8_t*>(counters + 4)) {}
  static constexpr int64_t kMaxCols = kCounters * 4 - 16;
};

/// The sum of `count` over the threads before this one; `total`: over all 256. `shared` holds 8.
__device__ __forceinline__ int sum_before(int count, int* shared, int& total) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int sum = count;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int other = __shfl_up_sync(kFullMask, sum, offset);
    if (lane >= offset) sum += other;
  }
  if (lane == 31) shared[warp] = sum;
  __syncthreads();
  int before = sum - count;
  total = 0;
  for (int w = 0; w < 8; ++w) {
    if (w < warp) before += shared[w];
    total += shared[w];
  }
  __syncthreads();
  return before;
}

/// One block, after all flags are set: takes them away, and writes lists. `words`: shared memory for cols bytes.
__device__ inline void list_outliers(const OutlierFlags& flags, int cols, const Int8Left& left, uint32_t* words) {
  __shared__ int sums[8];
  const int count = cols / 4, per_thread = (count + 255) / 256, chunks = (cols + kInt8Chunk - 1) / kInt8Chunk;
  auto* set = reinterpret_cast<uint32_t*>(flags.of_column);
  for (int i = threadIdx.x; i < count; i += 256) {
    words[i] = __ldcg(set + i);
    reinterpret_cast<uint32_t*>(left.flags)[i] = words[i];
    set[i] = 0;
  }
  __syncthreads();
  const int first = min(static_cast<int>(threadIdx.x) * per_thread, count), last = min(first + per_thread, count);
  int own = 0, total = 0;
  for (int i = first; i < last; ++i) own += __popc(words[i]);
  int at = sum_before(own, sums, total);
  for (int i = first; i < last; ++i)
    for (int byte = 0; byte < 4; ++byte)
      if (words[i] >> (8 * byte) & 1) left.columns[at++] = 4 * i + byte;
  if (threadIdx.x < kOutlierPanel && total + threadIdx.x < (total + kOutlierPanel - 1) / kOutlierPanel * kOutlierPanel)
    left.columns[total + threadIdx.x] = -1;
  int live = 0;
  for (int group = 0; group < chunks; group += 256) {
    const int chunk = group + static_cast<int>(threadIdx.x);
    bool is_live = false;
    for (int i = chunk * (kInt8Chunk / 4); chunk < chunks && i < min((chunk + 1) * (kInt8Chunk / 4), count); ++i)
      is_live = is_live || words[i] != 0x01010101u;
    int found = 0;
    const int place = live + sum_before(is_live, sums, found);
    if (is_live) left.live_chunks[place] = chunk;
    live += found;
  }
  if (threadIdx.x == 0) {
    const bool has_all = 2 * total >= cols;
    *left.summary = {total, ((has_all ? cols : total) + kOutlierPanel - 1) / kOutlierPanel, has_all, live};
  }
}

/// A row of x a block: its absmax without outliers, whose columns get a flag, and its codes. The last block to finish
/// lists the outlier columns. Shared memory: a row in fp16.
__global__ void __launch_bounds__(256)
    quantize_left_kernel(const DeviceX x, int cols, float threshold, const OutlierFlags flags, const Int8Left left) {
  extern __shared__ __align__(16) uint8_t memory[];
  __shared__ float shared[32];
  __shared__ bool is_last;
  wait_for_previous();
  uint2* values = reinterpret_cast<uint2*>(memory);
  const int64_t row = int64_t{blockIdx.x} * cols;
  const bool is_aligned = reinterpret_cast<uint64_t>(x.data) % 16 == 0;
  float maximum = 0;
  bool has_own = false;
#pragma unroll 4
  for (int c = threadIdx.x * 4; c < cols; c += 1024) {
    const float4 v = four_of(x, row + c, is_aligned);
    const __half2 low = __floats2half2_rn(v.x, v.y), high = __floats2half2_rn(v.z, v.w);
    const float2 a = __half22float2(low), b = __half22float2(high);
    values[c / 4] = make_uint2(reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high));
    const float four[4] = {a.x, a.y, b.x, b.y};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (!is_outlier(four[j], threshold)) {
        maximum = fmaxf(maximum, fabsf(four[j]));
      } else {
        has_own = flags.of_column[c + j] = 1;
      }
    }
  }
  maximum = block_max(maximum, shared);
  if (threadIdx.x == 0) left.scales[blockIdx.x] = maximum;
  const float scale = int8_scale(maximum);
#pragma unroll 4
  for (int c = threadIdx.x * 4; c < cols; c += 1024) {
    const uint2 v = values[c / 4];
    const float2 a = __half22float2(reinterpret_cast<const __half2&>(v.x)),
                 b = __half22float2(reinterpret_cast<const __half2&>(v.y));
    const float four[4] = {a.x, a.y, b.x, b.y};
    uint32_t codes = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (!is_outlier(four[j], threshold)) codes |= (encode_int8(four[j], scale) & 255) << (8 * j);
    *reinterpret_cast<uint32_t*>(left.codes + row + c) = codes;
  }
  if (threshold <= 0) return;
  __threadfence();
  const bool has_outlier = __syncthreads_or(has_own);
  if (threadIdx.x == 0) {
    if (has_outlier) *flags.any = 1;
    __threadfence();
    is_last = atomicAdd(flags.done, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  const bool has_any = __ldcg(flags.any) != 0;
  __syncthreads();
  if (has_any) list_outliers(flags, cols, left, reinterpret_cast<uint32_t*>(memory));
  if (threadIdx.x != 0) return;
  if (!has_any) *left.summary = {0, 0, 0, -1};
  *flags.done = 0;
  *flags.any = 0;
}

/// The weights of a call's jobs, whose panels stand one after the other: [panel][row of all jobs].
struct OutlierWeights {
  DeviceJobs jobs;  // first_tile: the job's first row
  int rows;         // of all jobs
  uint8_t* panels;
};

__device__ __forceinline__ float decode_weight(int8_t code, float absmax) {
  return __fmul_rn(__fmul_rn(static_cast<float>(code), absmax), 1.0f / 127.0f);
}

/// Eight columns of a row of x, from column j * 8 of a panel; those columns' codes become zero.
template <typename T>
__device__ __forceinline__ uint4 gather_x(const DeviceX& x, int64_t row, int cols, const Int8Left& left,
                                          const OutlierSummary& summary, int first) {
  float values[8];
  if (!summary.has_all_columns) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int column = left.columns[first + j];
      values[j] = column < 0 ? 0.0f : x[row * cols + column];
      if (column >= 0) left.codes[row * cols + column] = 0;
    }
  } else if (first < cols) {
    const uint2 flags = *reinterpret_cast<const uint2*>(left.flags + first);
    const bool is_aligned = reinterpret_cast<uint64_t>(x.data) % 16 == 0;
    const float4 a = four_of(x, row * cols + first, is_aligned), b = four_of(x, row * cols + first + 4, is_aligned);
    const float all[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int j = 0; j < 8; ++j) values[j] = (j < 4 ? flags.x : flags.y) >> (8 * (j % 4)) & 1 ? all[j] : 0.0f;
    if (summary.live_chunks > 0) {  // otherwise nobody reads codes
      uint2* codes = reinterpret_cast<uint2*>(left.codes + row * cols + first);
      uint2 kept = *codes;
      kept.x &= ~(flags.x * 255);
      kept.y &= ~(flags.y * 255);
      *codes = kept;
    }
  } else {
#pragma unroll
    for (float& value : values) value = 0;
  }
  return Vector8<T>::pack(values).words[0];
}

template <typename T>
__device__ __forceinline__ uint4 gather_w(const DeviceJob& job, int64_t row, int cols, const Int8Left& left,
                                          bool has_all, int first) {
  const auto* w = reinterpret_cast<const int8_t*>(job.weight.data) + row * cols;
  const float absmax = job.weight.absmax.values[row];
  uint2 packed = make_uint2(0, 0);
  auto* codes = reinterpret_cast<int8_t*>(&packed);
  if (!has_all) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int column = left.columns[first + j];
      codes[j] = column < 0 ? int8_t{0} : w[column];
    }
  } else if (first < cols) {
    packed = *reinterpret_cast<const uint2*>(w + first);
  }
  float values[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) values[j] = decode_weight(codes[j], absmax);
  return Vector8<T>::pack(values).words[0];
}

/// Panels of x and of the weights, rounded to T, eight columns a thread. Nothing to do without outliers.
template <typename T>
__global__ void __launch_bounds__(256) gather_outliers_kernel(const DeviceX x, int m, int cols, const Int8Left left,
                                                              const __grid_constant__ OutlierWeights weights) {
  wait_for_previous();
  const OutlierSummary summary = *left.summary;
  if (summary.count == 0) return;
  const auto panels = static_cast<uint32_t>(summary.panels);
  const auto groups = static_cast<uint32_t>(m + weights.rows) * panels;
  const int lane = threadIdx.x % 8;
  for (uint32_t group = (blockIdx.x * 256 + threadIdx.x) / 8; group < groups; group += gridDim.x * 32) {
    const auto row = static_cast<int>(group / panels);
    const int panel = static_cast<int>(group % panels), first = panel * kOutlierPanel + lane * 8;
    if (row < m) {
      reinterpret_cast<uint4*>(left.panels_x)[(int64_t{panel} * m + row) * 8 + lane] =
          gather_x<T>(x, row, cols, left, summary, first);
    } else {
      const int in_jobs = row - m;
      const DeviceJob& job = weights.jobs.of_tile(in_jobs);
      reinterpret_cast<uint4*>(weights.panels)[(int64_t{panel} * weights.rows + in_jobs) * 8 + lane] =
          gather_w<T>(job, in_jobs - job.first_tile, cols, left, summary.has_all_columns, first);
    }
  }
}

}  // namespace nibble::kernels::cuda
