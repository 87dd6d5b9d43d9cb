// x of few_rows_4bit.cuh, rounded to the compute type in shared memory; its RMS norm on the way, if asked for.
#pragma once

#include "kernels/cuda/device/few_rows_4bit_copies.cuh"

namespace nibble::kernels::cuda::few4 {

inline constexpr int kHeldQuads = 2;  // of a row of x, or of a norm's weights, that a thread has in registers

/// The norm's weights, in hand before x is there.
struct NormWeights {
  float4 held[kHeldQuads] = {};

  __device__ __forceinline__ explicit NormWeights(const FewRows4BitArgs& args) {
    if (!args.norm_weight) return;
#pragma unroll
    for (int j = 0; j < kHeldQuads; ++j) {
      const int quad = static_cast<int>(threadIdx.x + j * blockDim.x);
      if (4 * quad < args.cols) held[j] = *reinterpret_cast<const float4*>(args.norm_weight + 4 * quad);
    }
  }
};

template <typename T>
__device__ __forceinline__ void store_four(T* to, float4 x) {
  const T rounded[4] = {from_float<T>(x.x), from_float<T>(x.y), from_float<T>(x.z), from_float<T>(x.w)};
  *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(rounded);
}

/// Rows of x as they are.
template <typename T>
__device__ __forceinline__ void stage_plain(const FewRows4BitArgs& args, T* to) {
  const int threads = static_cast<int>(blockDim.x), quads = args.cols / 4;
  const bool is_aligned = reinterpret_cast<uint64_t>(args.x.data) % 16 == 0;
  for (int i = 0; i < args.m; ++i) {
    const int64_t row = int64_t{i} * args.cols;
    for (int base = 0; base < quads; base += 4 * threads) {
      const int first = base + static_cast<int>(threadIdx.x);
      float4 values[4];  // under way at a time
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int64_t at = row + 4 * (first + j * threads);
        if (first + j * threads >= quads) break;
        values[j] =
            is_aligned ? args.x.four_at(at) : make_float4(args.x[at], args.x[at + 1], args.x[at + 2], args.x[at + 3]);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (first + j * threads >= quads) break;
        store_four(to + i * args.x_stride + 4 * (first + j * threads), values[j]);
      }
    }
  }
}

/// Their norms. `sums`: a float for each warp and row.
template <typename T>
__device__ __forceinline__ void stage_normed(const FewRows4BitArgs& args, const NormWeights& norm, T* to, float* sums) {
  const int threads = static_cast<int>(blockDim.x), warps = threads / 32, quads = args.cols / 4;
  const int thread = static_cast<int>(threadIdx.x), past_held = thread + kHeldQuads * threads;
  const auto x_at = [&](int i, int quad) { return args.x.four_at(int64_t{i} * args.cols + 4 * quad); };
  float4 held[kHeldQuads];  // of the last row
  for (int i = 0; i < args.m; ++i) {
    float squares = 0;
    const auto add = [&](float4 x) {
      squares = fmaf(x.x, x.x, fmaf(x.y, x.y, fmaf(x.z, x.z, fmaf(x.w, x.w, squares))));
    };
#pragma unroll
    for (int j = 0; j < kHeldQuads; ++j)
      held[j] = thread + j * threads < quads ? x_at(i, thread + j * threads) : make_float4(0, 0, 0, 0);
#pragma unroll
    for (int j = 0; j < kHeldQuads; ++j) add(held[j]);
#pragma unroll 2
    for (int quad = past_held; quad < quads; quad += threads) add(x_at(i, quad));
    squares = warp_sum(squares);
    if (thread % 32 == 0) sums[i * warps + thread / 32] = squares;
  }
  __syncthreads();
  const auto store = [&](int i, int quad, float scale, float4 w, float4 x) {
    const float offset = args.weight_offset;
    store_four(to + i * args.x_stride + 4 * quad,
               make_float4(x.x * scale * (w.x + offset), x.y * scale * (w.y + offset), x.z * scale * (w.z + offset),
                           x.w * scale * (w.w + offset)));
  };
  for (int i = 0; i < args.m; ++i) {
    float total = 0;
#pragma unroll 4
    for (int w = 0; w < warps; ++w) total += sums[i * warps + w];
    const float scale = 1.0f / sqrtf(total / static_cast<float>(args.cols) + args.eps);
#pragma unroll
    for (int j = 0; j < kHeldQuads; ++j) {
      const int quad = thread + j * threads;
      if (quad < quads) store(i, quad, scale, norm.held[j], i == args.m - 1 ? held[j] : x_at(i, quad));
    }
    for (int quad = past_held; quad < quads; quad += threads)
      store(i, quad, scale, *reinterpret_cast<const float4*>(args.norm_weight + 4 * quad), x_at(i, quad));
  }
}

/// Rows of x, zeros up to a whole chunk.
template <typename T>
__device__ __forceinline__ void stage_x(const FewRows4BitArgs& args, const NormWeights& norm, T* to, float* sums) {
  args.norm_weight ? stage_normed(args, norm, to, sums) : stage_plain(args, to);
  const int padded = (args.cols + kChunk - 1) / kChunk * kChunk;
  for (int i = 0; i < args.m; ++i)
    for (int c = args.cols + static_cast<int>(threadIdx.x); c < padded; c += static_cast<int>(blockDim.x))
      to[i * args.x_stride + c] = from_float<T>(0.0f);
}

}  // namespace nibble::kernels::cuda::few4
