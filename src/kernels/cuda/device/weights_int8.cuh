// LLM.int8() for few rows of x: each block of threads quantizes all of x for itself while its first weights travel.
#pragma once

#include "kernels/cuda/device/int8_row.cuh"
#include "kernels/cuda/device/weights_plain.cuh"

namespace nibble::kernels::cuda {

/// T: what outlier columns are rounded to.
template <typename T>
class FewRowsInt8 : public FewRowsPlain<1> {
 public:
  using X = int8_t;
  using Sum = int;
  using Shared = FewRowsShared<FewRowsInt8>;
  using FewRowsPlain<1>::FewRowsPlain;
  static constexpr int64_t kMaxCols = 65536;

  /// Row scales, the number of outlier columns, the weight rows' absmax and outlier sums (two tiles of 16, and 16 x 8),
  /// then a list of columns and a flag each.
  static constexpr int kCount = 32, kAbsmax = 64, kSums = kAbsmax + 2 * 16 * 4, kList = kSums + 2 * 16 * 8 * 4;
  static int extra_bytes(int64_t cols) { return kList + static_cast<int>((cols + 15) / 16 * 16 * 3); }

  __device__ static void prepare(const FewRowsArgs& args, const Shared& shared, int padded) {
    const bool is_aligned = reinterpret_cast<uint64_t>(args.x.data) % 16 == 0;
    if (args.m == 1 && is_aligned && args.cols <= kKept * 4 * kThreads)
      prepare_one(args, shared, padded);
    else
      prepare_rows(args, shared, padded);
  }

  /// A tile's absmax, on the way while the tile before is multiplied.
  __device__ __forceinline__ void load_scales(const FewRowsArgs& args, int tile) {
    if (threadIdx.x >= kFewRowsTile) return;
    const DeviceJob& job = args.jobs.of_tile(tile);
    const int row = (tile - job.first_tile) * kFewRowsTile + static_cast<int>(threadIdx.x);
    absmax_ = job.weight.absmax.values[min(row, job.rows - 1)];
  }
  __device__ __forceinline__ void store_scales(const FewRowsArgs&, const Shared& shared, int, int half) const {
    if (threadIdx.x < kFewRowsTile) absmax_at(shared, half, threadIdx.x) = absmax_;
  }
  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int& value : total_) value = 0;
  }
  __device__ __forceinline__ void multiply(const FewRowsArgs&, const Shared&, uint32_t slot, const int8_t* x, int chunk,
                                           int) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const uint4 xs = *reinterpret_cast<const uint4*>(x + chunk * kChunk + part * (kChunk / 2) + quad_ * 16);
      const uint4 upper = load(slot, part, 0), lower = load(slot, part, 1);
      mma_int8(total_, upper.x, lower.x, upper.y, lower.y, xs.x, xs.y);
      mma_int8(total_, upper.z, lower.z, upper.w, lower.w, xs.z, xs.w);
    }
  }
  __device__ __forceinline__ int sum(int i) const { return total_[i]; }

  /// The outlier columns' products: a row of the tile a warp, columns a lane, added in a fixed order.
  __device__ __forceinline__ void end(const FewRowsArgs& args, const Shared& shared, int tile, int half) {
    if (threadIdx.x < kFewRowsSums)  // of the row that this thread will finish: later the place may be written again
      row_absmax_ = absmax_at(shared, half, lane_ / 4 + 8 * (static_cast<int>(threadIdx.x) / 64));
    const int count = *reinterpret_cast<const int*>(shared.extra + kCount);
    if (count == 0) return;
    const uint16_t* list = reinterpret_cast<const uint16_t*>(shared.extra + kList);
    const DeviceJob& job = args.jobs.of_tile(tile);
    const int row = min((tile - job.first_tile) * kFewRowsTile + static_cast<int>(threadIdx.x) / 32, job.rows - 1);
    const auto* w = reinterpret_cast<const int8_t*>(job.weight.data) + int64_t{row} * args.cols;
    const float absmax = job.weight.absmax.values[row];
    float sums[kFewRowsMax] = {};
    for (int j = lane_; j < count; j += 32) {
      const int column = list[j];
      const float decoded = __fmul_rn(__fmul_rn(static_cast<float>(w[column]), absmax), 1.0f / 127.0f);
      const float weight = to_float(from_float<T>(decoded));
#pragma unroll
      for (int i = 0; i < kFewRowsMax; ++i)
        if (i < args.m) sums[i] = fmaf(outlier_value<T>(args.x[int64_t{i} * args.cols + column]), weight, sums[i]);
    }
    float* out = reinterpret_cast<float*>(shared.extra + kSums) + (half * 16 + threadIdx.x / 32) * kFewRowsMax;
#pragma unroll
    for (int i = 0; i < kFewRowsMax; ++i) {
      if (i >= args.m) break;
      const float sum = warp_sum(sums[i]);
      if (lane_ == 0) out[i] = sum;
    }
  }

  __device__ __forceinline__ float finish(const FewRowsArgs&, const Shared& shared, const DeviceJob&, int in_tile, int,
                                          int i, int half, int sum) const {
    const float scale = reinterpret_cast<const float*>(shared.extra)[i] * row_absmax_;
    const float products = static_cast<float>(sum) * (scale * (1.0f / (127.0f * 127.0f)));
    if (*reinterpret_cast<const int*>(shared.extra + kCount) == 0) return products;
    return products + reinterpret_cast<const float*>(shared.extra + kSums)[(half * 16 + in_tile) * kFewRowsMax + i];
  }

 private:
  static constexpr int kThreads = kFewRowsWarps * 32;
  static constexpr int kKept = 6;  // times four values that a thread keeps of a single row

  __device__ static __forceinline__ float& absmax_at(const Shared& shared, int half, int in_tile) {
    return reinterpret_cast<float*>(shared.extra + kAbsmax)[half * kFewRowsTile + in_tile];
  }
  __device__ static __forceinline__ float rounded(float x) { return __half2float(__float2half_rn(x)); }

  /// One row, read once and kept in registers.
  __device__ static void prepare_one(const FewRowsArgs& args, const Shared& shared, int padded) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float* maxima = reinterpret_cast<float*>(shared.sums);
    float4 kept[kKept];
    DeviceX x = args.x;
    const auto load_all = [&](bool is_bf16) {
      x.is_bf16 = is_bf16;  // a constant: all loads are under way at once
#pragma unroll
      for (int j = 0; j < kKept; ++j) {
        const int c = (j * kThreads + static_cast<int>(threadIdx.x)) * 4;
        kept[j] = c < args.cols ? x.four_at(c) : make_float4(0, 0, 0, 0);
      }
    };
    if (args.x.is_bf16)
      load_all(true);
    else
      load_all(false);
    float maximum = 0;
    int found = 0;
#pragma unroll
    for (float4& v : kept) {
      v = make_float4(rounded(v.x), rounded(v.y), rounded(v.z), rounded(v.w));
      for (const float value : {v.x, v.y, v.z, v.w}) {
        const bool is_out = is_outlier(value, args.threshold);
        found += is_out;
        maximum = is_out ? maximum : fmaxf(maximum, fabsf(value));
      }
    }
    maximum = warp_max(maximum);
    if (lane == 0) maxima[warp] = maximum;
    const bool has_any = __syncthreads_or(found);
    maximum = warp_max(maxima[lane % kFewRowsWarps]);
    const float scale = int8_scale(maximum);
    if (threadIdx.x == 0) *reinterpret_cast<float*>(shared.extra) = maximum;
    if (threadIdx.x == 0 && !has_any) *reinterpret_cast<int*>(shared.extra + kCount) = 0;
    uint16_t* list = reinterpret_cast<uint16_t*>(shared.extra + kList);
    int at = has_any ? place_in_list(shared, found) : 0;
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int c = (j * kThreads + static_cast<int>(threadIdx.x)) * 4;
      if (c >= padded) break;
      uint32_t codes = 0;
      const float values[4] = {kept[j].x, kept[j].y, kept[j].z, kept[j].w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!is_outlier(values[i], args.threshold))
          codes |= (encode_int8(values[i], scale) & 255) << (8 * i);
        else
          list[at++] = static_cast<uint16_t>(c + i);
      }
      *reinterpret_cast<uint32_t*>(shared.x + c) = codes;
    }
  }

  /// Any rows, read twice: the warps divide into as many parts as there are rows.
  __device__ static void prepare_rows(const FewRowsArgs& args, const Shared& shared, int padded) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warps = kFewRowsWarps / (args.m > 4 ? 8 : args.m > 2 ? 4 : args.m), step = warps * 128;
    const int i = warp / warps, first = (warp % warps * 32 + lane) * 4;
    const bool is_aligned = reinterpret_cast<uint64_t>(args.x.data) % 16 == 0;
    const int64_t row = int64_t{i} * args.cols;
    uint8_t* flags = shared.extra + kList + (args.cols + 15) / 16 * 32;
    float* scales = reinterpret_cast<float*>(shared.extra);
    float* maxima = reinterpret_cast<float*>(shared.sums);
    for (int c = threadIdx.x * 4; c < args.cols; c += kThreads * 4) *reinterpret_cast<uint32_t*>(flags + c) = 0;
    __syncthreads();
    bool has_own = false;
    float maximum = 0;
#pragma unroll 4
    for (int c = first; c < (i < args.m ? args.cols : 0); c += step) {
      const float4 v = four_of(args.x, row + c, is_aligned);
      const float values[4] = {rounded(v.x), rounded(v.y), rounded(v.z), rounded(v.w)};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (is_outlier(values[j], args.threshold))
          has_own = flags[c + j] = 1;
        else
          maximum = fmaxf(maximum, fabsf(values[j]));
      }
    }
    maximum = warp_max(maximum);
    if (lane == 0) maxima[warp] = maximum;
    const bool has_any = __syncthreads_or(has_own);
    maximum = warp_max(maxima[i * warps + lane % warps]);
    if (i < args.m && first == 0) scales[i] = maximum;
    if (threadIdx.x == 0 && !has_any) *reinterpret_cast<int*>(shared.extra + kCount) = 0;
    if (has_any) list_outliers(args, shared, flags);
    const float scale = int8_scale(maximum);
#pragma unroll 4
    for (int c = first; c < (i < args.m ? padded : 0); c += step) {
      uint32_t codes = 0;
      if (c < args.cols) {
        const float4 v = four_of(args.x, row + c, is_aligned);
        const uint32_t skipped = *reinterpret_cast<const uint32_t*>(flags + c);
        const float values[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (!(skipped >> (8 * j) & 1)) codes |= (encode_int8(rounded(values[j]), scale) & 255) << (8 * j);
      }
      *reinterpret_cast<uint32_t*>(shared.x + i * args.x_stride + c) = codes;
    }
  }

  __device__ static void list_outliers(const FewRowsArgs& args, const Shared& shared, const uint8_t* flags) {
    uint16_t* list = reinterpret_cast<uint16_t*>(shared.extra + kList);
    int found = 0;
    for (int c = threadIdx.x; c < args.cols; c += kThreads) found += flags[c];
    int at = place_in_list(shared, found);
    for (int c = threadIdx.x; c < args.cols; c += kThreads)
      if (flags[c]) list[at++] = static_cast<uint16_t>(c);
  }

  /// Where this thread's `found` columns go; writes how many all have.
  __device__ static int place_in_list(const Shared& shared, int found) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int* sums = reinterpret_cast<int*>(shared.sums) + 8 * 32;
    int sum = found;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(kFullMask, sum, offset);
      if (lane >= offset) sum += other;
    }
    if (lane == 31) sums[warp] = sum;
    __syncthreads();
    int before = sum - found, total = 0;
    for (int w = 0; w < kFewRowsWarps; ++w) {
      if (w < warp) before += sums[w];
      total += sums[w];
    }
    if (threadIdx.x == 0) *reinterpret_cast<int*>(shared.extra + kCount) = total;
    return before;
  }

  int total_[4];
  float absmax_ = 0, row_absmax_ = 0;
};

}  // namespace nibble::kernels::cuda
