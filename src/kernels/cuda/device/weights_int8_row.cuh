// LLM.int8() for one row of x, which is read once and kept in registers while it is quantized; its norm may come first.
#pragma once

#include "kernels/cuda/device/weights_int8.cuh"

namespace nibble::kernels::cuda {

/// x starts at a multiple of 16 bytes. T: what outlier columns are rounded to.
template <typename T>
class FewRowsInt8Row : public Int8Products {
 public:
  using Shared = FewRowsShared<FewRowsInt8Row>;
  using Int8Products::Int8Products;
  static constexpr int kStagesBeforeX = 1;
  static constexpr int kKept = 6;  // times four values of the row that a thread keeps
  static constexpr int64_t kMaxCols = kKept * 4 * kThreads;
  static int extra_bytes(int64_t) { return (sizeof(Own) + 15) / 16 * 16; }

  /// Called before x is there: the first of the norm's weights.
  __device__ __forceinline__ void load_norm(const FewRowsArgs& args) {
    if (!args.norm_weight) return;
#pragma unroll
    for (int j = 0; j < kNormQuads; ++j)
      if (column_of(j) < args.cols) norm_[j] = *reinterpret_cast<const float4*>(args.norm_weight + column_of(j));
  }

  template <typename Fetch>
  __device__ __forceinline__ void prepare(const FewRowsArgs& args, const Shared& shared, int padded,
                                          const Fetch& fetch_more) const {
    const int warp = threadIdx.x / 32;
    float* maxima = reinterpret_cast<float*>(shared.sums);
    float4 kept[kKept];
    DeviceX x = args.x;
    const auto load_all = [&](bool is_bf16) {
      x.is_bf16 = is_bf16;  // a constant: all loads are under way at once
#pragma unroll
      for (int j = 0; j < kKept; ++j)
        kept[j] = column_of(j) < args.cols ? x.four_at(column_of(j)) : make_float4(0, 0, 0, 0);
    };
    if (args.x.is_bf16)
      load_all(true);
    else
      load_all(false);
    fetch_more();
    if (args.norm_weight) take_norm(args, shared, kept);
    float maximum = 0;
    int found = 0;
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      if (column_of(j) >= args.cols) break;
      float4& v = kept[j];
      v = make_float4(rounded(v.x), rounded(v.y), rounded(v.z), rounded(v.w));
      for (const float value : {v.x, v.y, v.z, v.w}) {
        const bool is_out = is_outlier(value, args.threshold);
        found += is_out;
        maximum = is_out ? maximum : fmaxf(maximum, fabsf(value));
      }
    }
    maximum = warp_max(maximum);
    if (lane_ == 0) maxima[warp] = maximum;
    const bool has_any = __syncthreads_or(found);
    maximum = warp_max(maxima[lane_ % kFewRowsWarps]);
    Own& own = own_of(shared);
    if (threadIdx.x == 0) {
      own.x_absmax[0] = maximum;
      if (!has_any) own.outlier_count = 0;
    }
    int at = has_any ? place_in_list(reinterpret_cast<int*>(maxima) + 32, found, &own.outlier_count) : 0;
    const float scale = int8_scale(maximum);
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      const int c = column_of(j);
      if (c >= padded) break;
      float values[4] = {kept[j].x, kept[j].y, kept[j].z, kept[j].w};
      if (has_any) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (is_outlier(values[i], args.threshold)) {
            values[i] = 0;
            list_column(args, own, at++, c + i);
          }
      }
      *reinterpret_cast<uint32_t*>(shared.x + c) = encode_four_int8(values, scale);
    }
  }

  /// And asks for the tile's first weights of outlier columns: a row of the tile a warp, columns a lane.
  __device__ __forceinline__ void store_scales(const FewRowsArgs& args, const Shared& shared, int tile, int half) {
    Own& own = own_of(shared);
    if (threadIdx.x < kFewRowsTile) own.absmax[half][threadIdx.x] = absmax_;
    const int count = min(own.outlier_count, kListed);
    if (count == 0) return;
    const int8_t* w = Place(args, tile, static_cast<int>(threadIdx.x) / 32).codes(args.cols);
#pragma unroll
    for (int k = 0; k < kAhead; ++k)
      if (lane_ + 32 * k < count) ahead_[k] = w[own.list[lane_ + 32 * k]];
  }

  /// The outlier columns' products, added in a fixed order.
  __device__ __forceinline__ void end(const FewRowsArgs& args, const Shared& shared, int tile, int half) {
    Own& own = own_of(shared);
    if (threadIdx.x < kFewRowsSums) keep_absmax(own.absmax[half], lane_ / 4);
    const int count = own.outlier_count;
    if (count == 0) return;
    const float absmax = own.absmax[half][threadIdx.x / 32];
    const Place place(args, tile, static_cast<int>(threadIdx.x) / 32);
    const float sum = warp_sum(count <= kListed ? sum_of_listed(own, place.codes(args.cols), absmax, count)
                                                : sum_of_all(args, own, place.codes(args.cols), absmax));
    if (lane_ == 0) own.outlier_sums[half][threadIdx.x / 32][0] = sum;
  }

  __device__ __forceinline__ float finish(const FewRowsArgs&, const Shared& shared, const DeviceJob&, int in_tile, int,
                                          int, int half, int sum) const {
    const Own& own = own_of(shared);
    const float products = product(own.x_absmax[0], in_tile, sum);
    return own.outlier_count == 0 ? products : products + own.outlier_sums[half][in_tile][0];
  }

 private:
  static constexpr int kNormQuads = 2;  // of the norm's weights, in hand before x is there
  static constexpr int kListed = 448;   // outlier columns; where there are more, all columns are looked at
  static constexpr int kAhead = 2;      // times 32 of them: weights under way while the tile's codes are multiplied

  struct Own : Int8RowsShared<1> {
    float norm;  // the factor of the row
    float values[kListed];
    uint16_t list[kListed];
  };
  __device__ static __forceinline__ Own& own_of(const Shared& shared) { return *reinterpret_cast<Own*>(shared.extra); }
  __device__ static __forceinline__ int column_of(int j) { return (j * kThreads + static_cast<int>(threadIdx.x)) * 4; }

  /// x of a column, normed where the call says so.
  __device__ static __forceinline__ float value_of(const FewRowsArgs& args, const Own& own, int column) {
    const float x = args.x[column];
    return args.norm_weight ? normed(args, x, own.norm, args.norm_weight[column]) : x;
  }
  __device__ static __forceinline__ void list_column(const FewRowsArgs& args, Own& own, int at, int column) {
    if (at >= kListed) return;
    own.list[at] = static_cast<uint16_t>(column);
    own.values[at] = outlier_value<T>(value_of(args, own, column));
  }

  __device__ static __forceinline__ float normed(const FewRowsArgs& args, float x, float scale, float weight) {
    const float value = x * scale * (weight + args.weight_offset);
    return __is_same(T, __nv_bfloat16) ? to_float(from_float<T>(value)) : value;  // as a norm of its own leaves it
  }

  /// The row becomes its RMS norm.
  __device__ __forceinline__ void take_norm(const FewRowsArgs& args, const Shared& shared,
                                            float4 (&kept)[kKept]) const {
    float squares = 0;
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      if (column_of(j) >= args.cols) break;
      const float4& v = kept[j];
      squares = fmaf(v.x, v.x, fmaf(v.y, v.y, fmaf(v.z, v.z, fmaf(v.w, v.w, squares))));
    }
    float* sums = reinterpret_cast<float*>(shared.sums) + 16;
    squares = warp_sum(squares);
    if (lane_ == 0) sums[threadIdx.x / 32] = squares;
    __syncthreads();
    const float total = warp_sum(lane_ < kFewRowsWarps ? sums[lane_] : 0.0f);
    const float scale = 1.0f / sqrtf(total / static_cast<float>(args.cols) + args.eps);
    if (threadIdx.x == 0) own_of(shared).norm = scale;
#pragma unroll
    for (int j = 0; j < kKept; ++j) {
      if (column_of(j) >= args.cols) break;
      const float4 w =
          j < kNormQuads ? norm_[j % kNormQuads] : *reinterpret_cast<const float4*>(args.norm_weight + column_of(j));
      float4& v = kept[j];
      v = make_float4(normed(args, v.x, scale, w.x), normed(args, v.y, scale, w.y), normed(args, v.z, scale, w.z),
                      normed(args, v.w, scale, w.w));
    }
  }

  __device__ __forceinline__ float sum_of_listed(const Own& own, const int8_t* w, float absmax, int count) const {
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kAhead; ++k)
      if (lane_ + 32 * k < count) sum = fmaf(own.values[lane_ + 32 * k], decoded<T>(ahead_[k], absmax), sum);
    for (int j = lane_ + 32 * kAhead; j < count; j += 32)
      sum = fmaf(own.values[j], decoded<T>(w[own.list[j]], absmax), sum);
    return sum;
  }

  __device__ __forceinline__ float sum_of_all(const FewRowsArgs& args, const Own& own, const int8_t* w,
                                              float absmax) const {
    float sum = 0;
#pragma unroll 4
    for (int c = lane_; c < args.cols; c += 32) {
      const float x = value_of(args, own, c);
      if (is_outlier(rounded(x), args.threshold)) sum = fmaf(outlier_value<T>(x), decoded<T>(w[c], absmax), sum);
    }
    return sum;
  }

  float4 norm_[kNormQuads] = {};
  int8_t ahead_[kAhead] = {};
};

}  // namespace nibble::kernels::cuda
