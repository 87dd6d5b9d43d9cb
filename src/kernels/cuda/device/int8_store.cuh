// The end of a tile of LLM.int8(): sums as wgmma leaves them to y.
#pragma once

#include "kernels/cuda/device/job.cuh"

namespace nibble::kernels::cuda {

/// Any alignment: one element at a time.
template <int kCount>
__device__ __forceinline__ void store_singly(const MatmulOutput& out, int m, int rows, int i, int n,
                                             const float (&sums)[kCount]) {
#pragma unroll
  for (int at = 0; at < kCount; ++at) {
    const int row = i + 8 * (at / 2 % 2), column = n + 8 * (at / 4) + at % 2;
    if (row < m && column < rows) put(out, row, column, sums[at]);
  }
}

/// fp32, two neighbours a lane: y's rows start at multiples of eight bytes, rows are even. What is added to is read
/// ahead.
template <int kCount>
__device__ __forceinline__ void store_floats(const MatmulOutput& out, int m, int rows, int i, int n,
                                             const float (&sums)[kCount]) {
  constexpr int kAhead = 8;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (i + 8 * half >= m) break;
    auto* y = static_cast<float*>(out.y) + (i + 8 * half) * out.y_stride;
#pragma unroll
    for (int first = 0; first < kCount / 4; first += kAhead) {
      float2 values[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int column = n + 8 * (first + j);
        values[j] = make_float2(0, 0);
        if (out.accumulate && column < rows) values[j] = *reinterpret_cast<const float2*>(y + column);
      }
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        const int column = n + 8 * (first + j);
        if (column >= rows) continue;
        const float* pair = sums + 4 * (first + j) + 2 * half;
        const float2 bias = out.bias ? make_float2(out.bias[column], out.bias[column + 1]) : make_float2(0, 0);
        *reinterpret_cast<float2*>(y + column) =
            make_float2(values[j].x + (pair[0] + bias.x), values[j].y + (pair[1] + bias.y));
      }
    }
  }
}

/// Among the four lanes of a row: lane l gives words[k] to lane k and gets lane k's words[l] as its words[k].
__device__ __forceinline__ void transpose_quad(uint32_t (&words)[4], int lane) {
  const auto exchange = [&](uint32_t& a, uint32_t& b, bool is_upper, int distance) {
    const uint32_t other = __shfl_xor_sync(kFullMask, is_upper ? a : b, distance);
    (is_upper ? a : b) = other;
  };
  exchange(words[0], words[1], lane & 1, 1);
  exchange(words[2], words[3], lane & 1, 1);
  exchange(words[0], words[2], lane & 2, 2);
  exchange(words[1], words[3], lane & 2, 2);
}

/// bf16, 16 bytes a lane: y's rows start at multiples of that, and as many columns as rows are a multiple of eight.
template <int kCount>
__device__ __forceinline__ void store_vectors(const MatmulOutput& out, int m, int rows, int i, int n, int lane,
                                              const float (&sums)[kCount]) {
  auto* y = static_cast<__nv_bfloat16*>(out.y) + n + 8 * (lane % 4);
#pragma unroll
  for (int group = 0; group < kCount / 16; ++group)  // 32 columns
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool is_inside = i + 8 * half < m && n + 32 * group + 8 * (lane % 4) < rows;
      auto* to = reinterpret_cast<uint4*>(y + (i + 8 * half) * out.y_stride + 32 * group);
      uint32_t words[4] = {};
      if (out.accumulate) {
        if (is_inside) {
          const uint4 before = *to;
          words[0] = before.x, words[1] = before.y, words[2] = before.z, words[3] = before.w;
        }
        transpose_quad(words, lane);
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float* pair = sums + 16 * group + 4 * k + 2 * half;
        const int column = n + 32 * group + 8 * k + 2 * (lane % 4);
        float low = pair[0], high = pair[1];
        if (out.bias && column < rows) low += out.bias[column], high += out.bias[column + 1];
        if (out.accumulate) low += __uint_as_float(words[k] << 16), high += __uint_as_float(words[k] & 0xffff0000u);
        const __nv_bfloat162 rounded = __floats2bfloat162_rn(low, high);
        words[k] = reinterpret_cast<const uint32_t&>(rounded);
      }
      transpose_quad(words, lane);
      if (is_inside) *to = make_uint4(words[0], words[1], words[2], words[3]);
    }
}

/// sums[4 * j + 2 * half + c]: row i + 8 * half of y, column n + 8 * j + 2 * (lane % 4) + c; n a multiple of 64.
template <int kCount>
__device__ __forceinline__ void store_tile(const MatmulOutput& out, int m, int rows, int i, int n, int lane,
                                           const float (&sums)[kCount]) {
  const auto at = reinterpret_cast<uint64_t>(out.y);
  const int own = n + 2 * (lane % 4);
  if (out.y_dtype == DType::bf16) {
    if (out.y_stride % 8 == 0 && rows % 8 == 0 && at % 16 == 0)
      store_vectors(out, m, rows, i, n, lane, sums);
    else
      store_singly(out, m, rows, i, own, sums);
  } else {
    if (out.y_stride % 2 == 0 && rows % 2 == 0 && at % 8 == 0)
      store_floats(out, m, rows, i, own, sums);
    else
      store_singly(out, m, rows, i, own, sums);
  }
}

}  // namespace nibble::kernels::cuda
