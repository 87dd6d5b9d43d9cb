// Weights that need no decoding, for few rows of x: bf16 and f16 as they lie, and LLM.int8().
#pragma once

#include "kernels/cuda/device/few_rows.cuh"
#include "kernels/cuda/device/int8_row.cuh"

namespace nibble::kernels::cuda {

/// How 16 bytes a lane of sixteen rows become two products; rows of a multiple of 16 bytes.
template <int kElementBytes>
class FewRowsPlain {
 public:
  static constexpr int kTableBytes = 0;
  static constexpr int kRowBytes = 128;  // of one piece
  static constexpr int kChunk = kRowBytes / kElementBytes;
  static constexpr int kXPadding = 64 / kElementBytes;  // rows of x start 64 bytes apart, modulo all banks
  static constexpr int kSlotBytes = 16 * kRowBytes;
  static constexpr int64_t kMaxCols = int64_t{1} << 30;

  __device__ explicit FewRowsPlain(int lane) : lane_(lane), group_(lane / 4), quad_(lane % 4) {}

  /// The copies go on to another tile.
  __device__ __forceinline__ void enter(const FewRowsArgs& args, int tile) {
    const DeviceJob& job = args.jobs.of_tile(tile);
    const int first = (tile - job.first_tile) * kFewRowsTile, last = job.rows - 1;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      rows_[half] =
          job.weight.data + int64_t{min(first + group_ + 8 * half, last)} * args.cols * kElementBytes + quad_ * 16;
  }

  __device__ __forceinline__ void prefetch(const FewRowsArgs& args, uint32_t slot, int chunk) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int at = chunk * kRowBytes + part * 64;
      const bool is_inside = at + quad_ * 16 < args.cols * kElementBytes;
#pragma unroll
      for (int half = 0; half < 2; ++half)
        copy_async_16(slot + (part * 2 + half) * 512 + lane_ * 16, rows_[half] + (is_inside ? at : 0),
                      is_inside ? 16 : 0);
    }
  }

  __device__ __forceinline__ void load_scales(const FewRowsArgs&, int) {}
  template <typename Shared>
  __device__ static void fill_table(const FewRowsArgs&, const Shared&) {}

 protected:
  /// This lane's 16 bytes: columns part * kChunk / 2 + quad * 16 / kElementBytes and on, of row group + 8 * half.
  __device__ __forceinline__ uint4 load(uint32_t slot, int part, int half) const {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(slot + (part * 2 + half) * 512 + lane_ * 16));
    return v;
  }

  int lane_, group_, quad_;
  const uint8_t* rows_[2];
};

template <typename T>
class FewRowsDense : public FewRowsPlain<2> {
 public:
  using X = T;
  using Sum = float;
  using Shared = FewRowsShared<FewRowsDense>;
  using FewRowsPlain<2>::FewRowsPlain;

  static int extra_bytes(int64_t) { return 0; }
  __device__ static void prepare(const FewRowsArgs& args, const Shared& shared, int padded) {
    stage_rounded(args, shared.x, padded);
  }
  __device__ __forceinline__ void store_scales(const FewRowsArgs&, const Shared&, int, int) const {}
  __device__ __forceinline__ void begin() {
#pragma unroll
    for (float& value : total_) value = 0;
  }
  __device__ __forceinline__ void multiply(const FewRowsArgs&, const Shared&, uint32_t slot, const T* x, int chunk,
                                           int) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const uint4 xs = *reinterpret_cast<const uint4*>(x + chunk * kChunk + part * (kChunk / 2) + quad_ * 8);
      const uint4 upper = load(slot, part, 0), lower = load(slot, part, 1);
      mma_16<T>(total_, upper.x, lower.x, upper.y, lower.y, xs.x, xs.y);
      mma_16<T>(total_, upper.z, lower.z, upper.w, lower.w, xs.z, xs.w);
    }
  }
  __device__ __forceinline__ float sum(int i) const { return total_[i]; }
  __device__ __forceinline__ void end(const FewRowsArgs&, const Shared&, int, int) const {}
  __device__ __forceinline__ float finish(const FewRowsArgs&, const Shared&, const DeviceJob&, int, int, int, int,
                                          float sum) const {
    return sum;
  }

 private:
  float total_[4];
};

/// LLM.int8(): each block of threads quantizes all of x for itself, finds the outlier columns, and adds their products.
/// T: what those are rounded to.
template <typename T>
class FewRowsInt8 : public FewRowsPlain<1> {
 public:
  using X = int8_t;
  using Sum = int;
  using Shared = FewRowsShared<FewRowsInt8>;
  using FewRowsPlain<1>::FewRowsPlain;

  /// Row scales, their number of outlier columns and sums (two tiles of 16 x 8), then a list of columns and a flag
  /// each.
  static constexpr int kCount = 32, kSums = 64, kList = kSums + 2 * 16 * 8 * 4;
  static int extra_bytes(int64_t cols) { return kList + static_cast<int>((cols + 15) / 16 * 16 * 5); }

  __device__ static void prepare(const FewRowsArgs& args, const Shared& shared, int padded) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint8_t* flags = shared.extra + kList + (args.cols + 15) / 16 * 64;
    for (int c = threadIdx.x; c < args.cols; c += blockDim.x) flags[c] = 0;
    int* count = reinterpret_cast<int*>(shared.extra + kCount);
    if (threadIdx.x == 0) *count = 0;
    __syncthreads();
    float* scales = reinterpret_cast<float*>(shared.extra);
    float* maxima = reinterpret_cast<float*>(shared.sums);
    for (int i = 0; i < args.m; ++i) {
      float maximum = 0;
#pragma unroll 4
      for (int c = threadIdx.x; c < args.cols; c += blockDim.x) {
        const float value = __half2float(__float2half_rn(args.x[int64_t{i} * args.cols + c]));
        if (is_outlier(value, args.threshold))
          flags[c] = 1;
        else
          maximum = fmaxf(maximum, fabsf(value));
      }
      maximum = warp_max(maximum);
      if (lane == 0) maxima[i * 32 + warp] = maximum;
    }
    __syncthreads();
    if (warp < args.m) {
      const float maximum = warp_max(lane < kFewRowsWarps ? maxima[warp * 32 + lane] : 0.0f);
      if (lane == 0) scales[warp] = maximum;
    }
    if (args.threshold > 0 && warp == kFewRowsWarps - 1) list_outliers(args, shared, flags, count);
    __syncthreads();
    for (int i = 0; i < args.m; ++i) {
      const float scale = int8_scale(scales[i]);
#pragma unroll 4
      for (int c = threadIdx.x; c < padded; c += blockDim.x) {
        int code = 0;
        if (c < args.cols && !flags[c])
          code = encode_int8(__half2float(__float2half_rn(args.x[int64_t{i} * args.cols + c])), scale);
        shared.x[i * args.x_stride + c] = static_cast<int8_t>(code);
      }
    }
  }

  __device__ __forceinline__ void store_scales(const FewRowsArgs&, const Shared&, int, int) const {}
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
  __device__ __forceinline__ void end(const FewRowsArgs& args, const Shared& shared, int tile, int half) const {
    const int count = *reinterpret_cast<const int*>(shared.extra + kCount);
    if (count == 0) return;
    const int* list = reinterpret_cast<const int*>(shared.extra + kList);
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
        if (i < args.m)
          sums[i] = fmaf(to_float(from_float<T>(args.x[int64_t{i} * args.cols + column])), weight, sums[i]);
    }
    float* out = reinterpret_cast<float*>(shared.extra + kSums) + (half * 16 + threadIdx.x / 32) * kFewRowsMax;
#pragma unroll
    for (int i = 0; i < kFewRowsMax; ++i) {
      if (i >= args.m) break;
      const float sum = warp_sum(sums[i]);
      if (lane_ == 0) out[i] = sum;
    }
  }

  __device__ __forceinline__ float finish(const FewRowsArgs&, const Shared& shared, const DeviceJob& job, int in_tile,
                                          int row, int i, int half, int sum) const {
    const float scale = reinterpret_cast<const float*>(shared.extra)[i] * job.weight.absmax.values[row];
    const float products = static_cast<float>(sum) * (scale * (1.0f / (127.0f * 127.0f)));
    if (*reinterpret_cast<const int*>(shared.extra + kCount) == 0) return products;
    return products + reinterpret_cast<const float*>(shared.extra + kSums)[(half * 16 + in_tile) * kFewRowsMax + i];
  }

 private:
  /// One warp writes the columns that have a flag, ascending.
  __device__ static void list_outliers(const FewRowsArgs& args, const Shared& shared, const uint8_t* flags,
                                       int* count) {
    int* list = reinterpret_cast<int*>(shared.extra + kList);
    const int lane = threadIdx.x % 32;
    int found = 0;
    for (int first = 0; first < args.cols; first += 32) {
      const bool is_set = first + lane < args.cols && flags[first + lane];
      const unsigned all = __ballot_sync(kFullMask, is_set);
      if (is_set) list[found + __popc(all & ((1u << lane) - 1))] = first + lane;
      found += __popc(all);
    }
    if (lane == 0) *count = found;
  }

  int total_[4];
};

}  // namespace nibble::kernels::cuda
