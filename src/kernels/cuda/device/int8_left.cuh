// LLM.int8() for many rows of x, before the product: codes and scales of x, and the list of outlier columns. Nothing
// waits for the host: how many columns there are stays on the device.
#pragma once

#include "kernels/cuda/device/dependent.cuh"
#include "kernels/cuda/device/int8_row.cuh"
#include "kernels/cuda/device/vector.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kInt8Chunk = 128;    // columns of codes that a step of the product takes
inline constexpr int kOutlierPanel = 64;  // outlier columns of a panel: as many bytes

/// What the launches know of each other. Panels hold the outlier columns alone, or, where those are at least half, all
/// columns with zeros on one side for the others.
struct OutlierSummary {
  int count;   // outlier columns
  int panels;  // 0 if there are none
  int has_all_columns;
  int live_chunks;   // those with a column that is no outlier; -1: all, and there is no list of them
  int has_direct_x;  // all columns, and x itself is the left side: the zeros are the weights'
  int has_large_x;   // fp16 does not hold all of x, or it has a NaN: 16-bit panels are bf16
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

/// In the context's counters, zero before and after: blocks that are done, what they found, flags by column.
struct OutlierFlags {
  static constexpr uint32_t kHasOutlier = 1, kHasLarge = 2;  // infinite in fp16, or NaN

  uint32_t* done;
  uint32_t* found;
  uint8_t* of_column;

  __host__ __device__ explicit OutlierFlags(uint32_t* counters)
      : done(counters), found(counters + 1), of_column(reinterpret_cast<uint8_t*>(counters + 4)) {}
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
__device__ inline void list_outliers(const OutlierFlags& flags, uint32_t found_all, bool may_be_direct, int cols,
                                     const Int8Left& left, uint32_t* words) {
  __shared__ int sums[8];
  const int count = cols / 4, per_thread = (count + 255) / 256, chunks = (cols + kInt8Chunk - 1) / kInt8Chunk;
  auto* set = reinterpret_cast<uint32_t*>(flags.of_column);
  constexpr int kLoads = 8;  // under way at once
  for (int group = threadIdx.x; group < count; group += kLoads * 256) {
    uint32_t loaded[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) loaded[j] = group + j * 256 < count ? __ldcg(set + group + j * 256) : 0;
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int i = group + j * 256;
      if (i >= count) break;
      words[i] = loaded[j];
      reinterpret_cast<uint32_t*>(left.flags)[i] = loaded[j];
      set[i] = 0;
    }
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
    const bool has_all = 2 * total >= cols, has_large = (found_all & OutlierFlags::kHasLarge) != 0;
    *left.summary = {total,
                     ((has_all ? cols : total) + kOutlierPanel - 1) / kOutlierPanel,
                     has_all,
                     live,
                     has_all && may_be_direct && !has_large,
                     has_large};
  }
}

/// Eight values of x in fp16.
struct HalfVector {
  __half2 pairs[4];

  template <bool kAligned, typename From>
  __device__ static __forceinline__ HalfVector load(const From* from) {
    HalfVector v;
    float values[8];
    if constexpr (kAligned) {
      Vector8<From>::load_cached(from).unpack(values);
    } else {
#pragma unroll
      for (int j = 0; j < 8; ++j) values[j] = to_float(from[j]);
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) v.pairs[j] = __floats2half2_rn(values[2 * j], values[2 * j + 1]);
    return v;
  }
  __device__ __forceinline__ void unpack(float (&values)[8]) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 pair = __half22float2(pairs[j]);
      values[2 * j] = pair.x, values[2 * j + 1] = pair.y;
    }
  }
  __device__ __forceinline__ float largest() const {
    const __half2 both =
        __hmax2(__hmax2(__habs2(pairs[0]), __habs2(pairs[1])), __hmax2(__habs2(pairs[2]), __habs2(pairs[3])));
    return fmaxf(__low2float(both), __high2float(both));
  }
  __device__ __forceinline__ bool is_finite() const {
    const __half2 zero = __float2half2_rn(0.0f);  // times what is not finite: NaN
    __half2 sum = __hmul2(pairs[0], zero);
#pragma unroll
    for (int j = 1; j < 4; ++j) sum = __hfma2(pairs[j], zero, sum);
    return __hbeq2(sum, sum);
  }
};

/// Calls body(column, its eight values) for a warp's share of a row; several loads are under way at once.
template <bool kAligned, typename From, typename Body>
__device__ __forceinline__ void for_row(const From* from, int cols, const Body& body) {
  constexpr int kLoads = 8;
  for (int first = static_cast<int>(threadIdx.x) % 32 * 8; first < cols; first += kLoads * 256) {
    HalfVector vectors[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j)
      if (first + j * 256 < cols) vectors[j] = HalfVector::load<kAligned>(from + first + j * 256);
#pragma unroll
    for (int j = 0; j < kLoads; ++j)
      if (first + j * 256 < cols) body(first + j * 256, vectors[j]);
  }
}

/// Half to even, for |x * scale| within rounding of 127; NaN is 0.
__device__ __forceinline__ uint32_t encode_four(const float* x, float scale) {
  uint32_t codes = 0;
#pragma unroll
  for (int j = 3; j >= 0; --j) codes = codes << 8 | (static_cast<uint32_t>(__float2int_rn(x[j] * scale)) & 255);
  return codes;
}

/// A warp's row of x: its absmax without outliers, whose columns get a flag, and its codes. What it found.
template <bool kAligned, typename From>
__device__ __forceinline__ uint32_t quantize_row(const From* x, int row, int cols, float threshold, uint8_t* flags,
                                                 const Int8Left& left) {
  const From* from = x + int64_t{row} * cols;
  float maximum = 0;
  uint32_t found = 0;
  for_row<kAligned>(from, cols, [&](int c, const HalfVector& v) {
    const float largest = v.largest();
    if (!v.is_finite()) found |= OutlierFlags::kHasLarge;
    if (!is_outlier(largest, threshold)) {
      maximum = fmaxf(maximum, largest);
      return;
    }
    found |= OutlierFlags::kHasOutlier;
    float values[8];
    v.unpack(values);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (is_outlier(values[j], threshold))
        flags[c + j] = 1;
      else
        maximum = fmaxf(maximum, fabsf(values[j]));
    }
  });
  maximum = warp_max(maximum);
  if (threadIdx.x % 32 == 0) left.scales[row] = maximum;
  const float scale = int8_scale(maximum);
  const bool has_outlier = __any_sync(kFullMask, found & OutlierFlags::kHasOutlier);
  for_row<kAligned>(from, cols, [&](int c, const HalfVector& v) {
    float values[8];
    v.unpack(values);
    if (has_outlier) {
#pragma unroll
      for (float& value : values) value = is_outlier(value, threshold) ? 0.0f : value;
    }
    *reinterpret_cast<uint2*>(left.codes + int64_t{row} * cols + c) =
        make_uint2(encode_four(values, scale), encode_four(values + 4, scale));
  });
  return found;
}

/// A row of x a warp. The last block to finish lists the outlier columns. Shared memory, with a threshold: cols bytes.
template <typename From>
__global__ void __launch_bounds__(256)
    quantize_left_kernel(const From* x, int m, int cols, float threshold, bool may_be_direct, const OutlierFlags flags,
                         const Int8Left left) {
  extern __shared__ __align__(16) uint8_t memory[];
  __shared__ bool is_last;
  wait_for_previous();
  const bool is_aligned = reinterpret_cast<uint64_t>(x) % 16 == 0;
  const int warp = threadIdx.x / 32, warps = gridDim.x * 8;
  uint32_t found = 0;
  for (int row = blockIdx.x + warp * gridDim.x; row < m; row += warps)
    found |= is_aligned ? quantize_row<true>(x, row, cols, threshold, flags.of_column, left)
                        : quantize_row<false>(x, row, cols, threshold, flags.of_column, left);
  if (threshold <= 0) return;
  __threadfence();
  const bool has_outlier = __syncthreads_or(found & OutlierFlags::kHasOutlier);
  const bool has_large = __syncthreads_or(found & OutlierFlags::kHasLarge);
  if (threadIdx.x == 0) {
    const uint32_t all = (has_outlier ? OutlierFlags::kHasOutlier : 0) | (has_large ? OutlierFlags::kHasLarge : 0);
    if (all) atomicOr(flags.found, all);
    __threadfence();
    is_last = atomicAdd(flags.done, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  const uint32_t found_all = __ldcg(flags.found);
  __syncthreads();
  if (found_all & OutlierFlags::kHasOutlier)
    list_outliers(flags, found_all, may_be_direct, cols, left, reinterpret_cast<uint32_t*>(memory));
  if (threadIdx.x != 0) return;
  if (!(found_all & OutlierFlags::kHasOutlier)) *left.summary = {0, 0, 0, -1, 0, 0};
  *flags.done = 0;
  *flags.found = 0;
}

}  // namespace nibble::kernels::cuda
