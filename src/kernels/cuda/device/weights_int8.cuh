// LLM.int8() for few rows of x: each block of threads quantizes all of x for itself while its first weights travel.
#pragma once

#include "kernels/cuda/device/int8_row.cuh"
#include "kernels/cuda/device/weights_plain.cuh"

namespace nibble::kernels::cuda {

/// What products of at most kMost rows of x keep in shared memory, before their outlier columns.
template <int kMost>
struct Int8RowsShared {
  float x_absmax[kMost];
  float absmax[2][kFewRowsTile];  // of two tiles' weight rows
  float outlier_sums[2][kFewRowsTile][kMost];
  int outlier_count;
};

/// Codes of x by codes of weights, and what is alike for one row of x and for several.
class Int8Products : public FewRowsPlain<1> {
 public:
  using X = int8_t;
  using Sum = int;
  using FewRowsPlain<1>::FewRowsPlain;
  static constexpr bool kCanGate = true;

  /// The copies go on to another tile.
  __device__ __forceinline__ void enter(const FewRowsArgs& args, int tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Place place(args, tile, group_ + 8 * half);
      rows_[half] = place.job.weight.data + int64_t{place.row} * args.cols + quad_ * 16;
    }
  }

  /// A tile's absmax, on the way while the tile before is multiplied.
  __device__ __forceinline__ void load_scales(const FewRowsArgs& args, int tile) {
    if (threadIdx.x >= kFewRowsTile) return;
    const Place place(args, tile, threadIdx.x);
    absmax_ = place.job.weight.absmax.values[place.row];
  }
  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int& value : total_) value = 0;
  }
  template <typename Shared>
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

 protected:
  static constexpr int kThreads = kFewRowsWarps * 32;

  /// A weight row of a tile; of a gated call the first eight are gate's and the others up's.
  struct Place {
    const DeviceJob& job;
    int row;

    __device__ __forceinline__ Place(const FewRowsArgs& args, int tile, int in_tile)
        : job(args.is_gated ? args.jobs.jobs[in_tile / 8] : args.jobs.of_tile(tile)),
          row(min(args.is_gated ? tile * (kFewRowsTile / 2) + in_tile % 8
                                : (tile - job.first_tile) * kFewRowsTile + in_tile,
                  job.rows - 1)) {}
    __device__ __forceinline__ const int8_t* codes(int cols) const {
      return reinterpret_cast<const int8_t*>(job.weight.data) + int64_t{row} * cols;
    }
  };

  __device__ static __forceinline__ float rounded(float x) { return __half2float(__float2half_rn(x)); }

  /// A weight as an outlier's product takes it.
  template <typename T>
  __device__ static __forceinline__ float decoded(int8_t code, float absmax) {
    return to_float(from_float<T>(__fmul_rn(__fmul_rn(static_cast<float>(code), absmax), 1.0f / 127.0f)));
  }

  /// Of the rows that this thread will finish, `first` and eight below: later the place may be written again.
  __device__ __forceinline__ void keep_absmax(const float* absmax, int first) {
    row_absmax_[0] = absmax[first];
    row_absmax_[1] = absmax[first + 8];
  }
  __device__ __forceinline__ float product(float x_absmax, int in_tile, int sum) const {
    const float absmax = in_tile < 8 ? row_absmax_[0] : row_absmax_[1];
    return static_cast<float>(sum) * (x_absmax * absmax * (1.0f / (127.0f * 127.0f)));
  }

  /// Where this thread's `found` columns go in a list; writes how many all have. `sums`: one a warp.
  __device__ static int place_in_list(int* sums, int found, int* count) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
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
    if (threadIdx.x == 0) *count = total;
    return before;
  }

  int total_[4];
  float absmax_ = 0, row_absmax_[2] = {};
};

/// Up to eight rows, read twice. T: what outlier columns are rounded to.
template <typename T>
class FewRowsInt8 : public Int8Products {
 public:
  using Shared = FewRowsShared<FewRowsInt8>;
  using Int8Products::Int8Products;
  static constexpr int64_t kMaxCols = 65536;

  /// Then a list of outlier columns and a flag for each column.
  static int extra_bytes(int64_t cols) { return kList + static_cast<int>((cols + 15) / 16 * 16 * 3); }

  __device__ __forceinline__ void store_scales(const FewRowsArgs&, const Shared& shared, int, int half) const {
    if (threadIdx.x < kFewRowsTile) own(shared).absmax[half][threadIdx.x] = absmax_;
  }

  /// The outlier columns' products: a row of the tile a warp, columns a lane, added in a fixed order.
  __device__ __forceinline__ void end(const FewRowsArgs& args, const Shared& shared, int tile, int half) {
    if (threadIdx.x < kFewRowsSums) keep_absmax(own(shared).absmax[half], lane_ / 4);
    const int count = own(shared).outlier_count;
    if (count == 0) return;
    const uint16_t* list = list_of(shared);
    const Place place(args, tile, static_cast<int>(threadIdx.x) / 32);
    const int8_t* w = place.codes(args.cols);
    const float absmax = place.job.weight.absmax.values[place.row];
    float sums[kFewRowsMax] = {};
    for (int j = lane_; j < count; j += 32) {
      const int column = list[j];
      const float weight = decoded<T>(w[column], absmax);
#pragma unroll
      for (int i = 0; i < kFewRowsMax; ++i)
        if (i < args.m) sums[i] = fmaf(outlier_value<T>(args.x[int64_t{i} * args.cols + column]), weight, sums[i]);
    }
    float* out = own(shared).outlier_sums[half][threadIdx.x / 32];
#pragma unroll
    for (int i = 0; i < kFewRowsMax; ++i) {
      if (i >= args.m) break;
      const float sum = warp_sum(sums[i]);
      if (lane_ == 0) out[i] = sum;
    }
  }

  __device__ __forceinline__ float finish(const FewRowsArgs&, const Shared& shared, const DeviceJob&, int in_tile, int,
                                          int i, int half, int sum) const {
    const float products = product(own(shared).x_absmax[i], in_tile, sum);
    return own(shared).outlier_count == 0 ? products : products + own(shared).outlier_sums[half][in_tile][i];
  }

  __device__ static void prepare(const FewRowsArgs& args, const Shared& shared, int padded) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warps = kFewRowsWarps / (args.m > 4 ? 8 : args.m > 2 ? 4 : args.m), step = warps * 128;
    const int i = warp / warps, first = (warp % warps * 32 + lane) * 4;
    const bool is_aligned = reinterpret_cast<uint64_t>(args.x.data) % 16 == 0;
    const int64_t row = int64_t{i} * args.cols;
    uint8_t* flags = shared.extra + kList + (args.cols + 15) / 16 * 32;
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
    if (i < args.m && first == 0) own(shared).x_absmax[i] = maximum;
    if (threadIdx.x == 0 && !has_any) own(shared).outlier_count = 0;
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

 private:
  __device__ static void list_outliers(const FewRowsArgs& args, const Shared& shared, const uint8_t* flags) {
    uint16_t* list = list_of(shared);
    int found = 0;
    for (int c = threadIdx.x; c < args.cols; c += kThreads) found += flags[c];
    int at = place_in_list(reinterpret_cast<int*>(shared.sums) + 32, found, &own(shared).outlier_count);
    for (int c = threadIdx.x; c < args.cols; c += kThreads)
      if (flags[c]) list[at++] = static_cast<uint16_t>(c);
  }

  __device__ static __forceinline__ Int8RowsShared<kFewRowsMax>& own(const Shared& shared) {
    return *reinterpret_cast<Int8RowsShared<kFewRowsMax>*>(shared.extra);
  }
  __device__ static __forceinline__ uint16_t* list_of(const Shared& shared) {
    return reinterpret_cast<uint16_t*>(shared.extra + kList);
  }
  static constexpr int kList = (sizeof(Int8RowsShared<kFewRowsMax>) + 15) / 16 * 16;
};

}  // namespace nibble::kernels::cuda
