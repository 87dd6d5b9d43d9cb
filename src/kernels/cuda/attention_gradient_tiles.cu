// The attention gradient on tensor cores, as FlashAttention-2 (Dao, 2023): scores are computed anew from what the
// statistics keep of each query; queries' and keys' gradients by launches of their own, so that no sum needs an atomic.
#include <type_traits>

#include "kernels/cuda/device/attention_gradient.cuh"
#include "kernels/cuda/device/mma.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kOwn = kWarps * 16;  // rows of a block: queries, or keys

/// Rows that a block keeps, and two buffers of rows that pass by; of kTensors tensors each.
template <int kDim, int kPassing, int kTensors>
struct Tiles {
  static constexpr int kStride = kDim + 8;  // loads of matrices free of bank conflicts
  __nv_bfloat16 own[kTensors][kOwn * kStride];
  __nv_bfloat16 passing[kTensors][2][kPassing * kStride];
};

/// Rows of one head among dense (tokens, heads, head_dim).
struct HeadRows {
  const __nv_bfloat16* data;
  int64_t stride;
  int dim;

  __device__ HeadRows(const float* tensor, int64_t heads, int64_t head, int64_t head_dim)
      : data(reinterpret_cast<const __nv_bfloat16*>(tensor) + head * head_dim),
        stride(heads * head_dim),
        dim(static_cast<int>(head_dim)) {}
};

/// Starts copying kRows rows from `first` on; zeros from row `end` on and beyond the head's size.
template <int kDim, int kRows>
__device__ __forceinline__ void start_rows(__nv_bfloat16* to, const HeadRows& from, int64_t first, int64_t end) {
  constexpr int kChunks = kDim / 8;
#pragma unroll
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, column = i % kChunks * 8;
    const bool is_valid = first + row < end && column < from.dim;
    copy_async_16(to + row * (kDim + 8) + column,
                  is_valid ? from.data + (first + row) * from.stride + column : from.data, is_valid);
  }
}

/// out (16, kPassing) = the warp's rows of `own` times the passing rows.
template <int kDim, int kPassing>
__device__ __forceinline__ void multiply_rows(const __nv_bfloat16* own, const __nv_bfloat16* passing,
                                              float (&out)[kPassing / 8][4]) {
  constexpr int kStride = kDim + 8;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int n = 0; n < kPassing / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) out[n][i] = 0;
#pragma unroll
  for (int d = 0; d < kDim; d += 16) {
    uint32_t a[4];
    load_matrices(a, own + (warp * 16 + lane % 16) * kStride + d + lane / 16 * 8);
#pragma unroll
    for (int n = 0; n < kPassing / 8; n += 2) {
      uint32_t b[4];
      load_matrices(b, passing + (n * 8 + lane % 8 + lane / 16 * 8) * kStride + d + lane / 8 % 2 * 8);
      multiply_bf16(out[n], a, b[0], b[1]);
      multiply_bf16(out[n + 1], a, b[2], b[3]);
    }
  }
}

/// sum (16, kDim) += weights (16, kPassing) . passing rows.
template <int kDim, int kPassing>
__device__ __forceinline__ void add_rows(const float (&weights)[kPassing / 8][4], const __nv_bfloat16* passing,
                                         float (&sum)[kDim / 8][4]) {
  constexpr int kStride = kDim + 8;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int row = 0; row < kPassing; row += 16) {
    const int n = row / 8;
    const uint32_t a[4] = {pack_bf16(weights[n][0], weights[n][1]), pack_bf16(weights[n][2], weights[n][3]),
                           pack_bf16(weights[n + 1][0], weights[n + 1][1]),
                           pack_bf16(weights[n + 1][2], weights[n + 1][3])};
#pragma unroll
    for (int d = 0; d < kDim; d += 16) {
      uint32_t b[4];
      load_matrices_transposed(b, passing + (row + lane % 8 + lane / 8 % 2 * 8) * kStride + d + lane / 16 * 8);
      multiply_bf16(sum[d / 8], a, b[0], b[1]);
      multiply_bf16(sum[d / 8 + 1], a, b[2], b[3]);
    }
  }
}

/// The warp's 16 rows of a sum into the head's rows [first, end).
template <int kDim>
__device__ __forceinline__ void store_rows(float* tensor, const HeadRows& like, int64_t head_offset, int64_t first,
                                           int64_t end, const float (&sum)[kDim / 8][4]) {
  auto* to = reinterpret_cast<__nv_bfloat16*>(tensor) + head_offset;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = first + warp * 16 + lane / 4 + half * 8;
    if (row >= end) continue;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const int column = n * 8 + lane % 4 * 2;
      if (column < like.dim)
        *reinterpret_cast<uint32_t*>(to + row * like.stride + column) =
            pack_bf16(sum[n][2 * half], sum[n][2 * half + 1]);
    }
  }
}

/// Minus infinity where the query does not see the key, unless all of the tile's do.
template <bool kSpecial, bool kWhole>
__device__ __forceinline__ Score seen_score(const GradientCall& call, float product, float slope, int64_t query,
                                            int64_t key) {
  if (!kWhole && (key > query || query - key >= call.window)) return {-INFINITY, call.scale};
  return score_of<kSpecial>(call, product, slope, key);
}

/// Calls body(std::true_type) if all queries [query, query + queries) see all keys [key, key + keys), else
/// body(std::false_type).
template <typename Body>
__device__ __forceinline__ void with_mask(const GradientCall& call, int64_t query, int64_t queries, int64_t key,
                                          int64_t keys, const Body& body) {
  if (key + keys - 1 <= query && query + queries - 1 - key < call.window)
    body(std::true_type{});
  else
    body(std::false_type{});
}

/// delta = out . dout, a warp a query and head.
__global__ void __launch_bounds__(kThreads) delta_kernel(const __grid_constant__ GradientCall call) {
  const AttentionGradientSequence& s = call.at[blockIdx.z];
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;  // over tokens and heads
  if (row >= s.tokens * call.heads) return;
  const auto* out = reinterpret_cast<const __nv_bfloat16*>(s.out) + row * call.head_dim;
  const auto* dout = reinterpret_cast<const __nv_bfloat16*>(s.dout) + row * call.head_dim;
  float sum = 0;
  for (int64_t d = threadIdx.x % 32; d < call.head_dim; d += 32) sum = fmaf(to_float(out[d]), to_float(dout[d]), sum);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0)
    call.delta[row % call.heads * call.total + call.first[blockIdx.z] + row / call.heads] = sum;
}

/// Grid: (tiles of queries, heads, sequences), those that see most keys first. lse2 of each query.
template <int kDim, bool kSpecial>
__global__ void __launch_bounds__(kThreads) statistics_kernel(const __grid_constant__ GradientCall call) {
  constexpr int kPassing = 64;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& tiles = *reinterpret_cast<Tiles<kDim, kPassing, 1>*>(memory);
  const AttentionGradientSequence& s = call.at[blockIdx.z];
  const int64_t first = static_cast<int64_t>(gridDim.x - 1 - blockIdx.x) * kOwn, head = blockIdx.y;
  if (first >= s.tokens) return;
  const int64_t end = min(first + kOwn, s.tokens),
                begin = max(int64_t{0}, first + 1 - call.window) / kPassing * kPassing;
  const HeadRows q(s.q, call.heads, head, call.head_dim);
  const HeadRows k(s.k, call.kv_heads, head / (call.heads / call.kv_heads), call.head_dim);
  start_rows<kDim, kOwn>(tiles.own[0], q, first, end);
  start_rows<kDim, kPassing>(tiles.passing[0][0], k, begin, end);
  commit_copies();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t query = first + warp * 16 + lane / 4;
  const float slope = slope_of(call, head);
  float maximum[2] = {-INFINITY, -INFINITY}, total[2] = {};
  int buffer = 0;
  for (int64_t key = begin; key < end; key += kPassing, buffer ^= 1) {
    if (key + kPassing < end) start_rows<kDim, kPassing>(tiles.passing[0][buffer ^ 1], k, key + kPassing, end);
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    float scores[kPassing / 8][4];
    multiply_rows<kDim, kPassing>(tiles.own[0], tiles.passing[0][buffer], scores);
    with_mask(call, first, kOwn, key, kPassing, [&](auto whole) {
#pragma unroll
      for (int n = 0; n < kPassing / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          scores[n][i] = seen_score<kSpecial, decltype(whole)::value>(call, scores[n][i], slope, query + i / 2 * 8,
                                                                      key + n * 8 + lane % 4 * 2 + i % 2)
                             .log2;
    });
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float highest = maximum[half];
#pragma unroll
      for (int n = 0; n < kPassing / 8; ++n)
        highest = fmaxf(highest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      const float base = highest == -INFINITY ? 0.0f : highest;
      float sum = total[half] * power_of_two(maximum[half] - base);
#pragma unroll
      for (int n = 0; n < kPassing / 8; ++n)
        sum += power_of_two(scores[n][2 * half] - base) + power_of_two(scores[n][2 * half + 1] - base);
      total[half] = sum;
      maximum[half] = highest;
    }
    __syncthreads();
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float highest = maximum[half];
    highest = fmaxf(highest, __shfl_xor_sync(kFullMask, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(kFullMask, highest, 2));
    const float base = highest == -INFINITY ? 0.0f : highest;
    float sum = total[half] * power_of_two(maximum[half] - base);
    sum += __shfl_xor_sync(kFullMask, sum, 1);
    sum += __shfl_xor_sync(kFullMask, sum, 2);
    if (lane % 4 == 0 && query + 8 * half < end) call.lse2_at(blockIdx.z, head, query + 8 * half) = base + log2f(sum);
  }
}

/// Grid as above. dq of each query.
template <int kDim, bool kSpecial>
__global__ void __launch_bounds__(kThreads, 3) query_kernel(const __grid_constant__ GradientCall call) {
  constexpr int kPassing = 32;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& tiles = *reinterpret_cast<Tiles<kDim, kPassing, 2>*>(memory);
  const AttentionGradientSequence& s = call.at[blockIdx.z];
  const int64_t first = static_cast<int64_t>(gridDim.x - 1 - blockIdx.x) * kOwn, head = blockIdx.y;
  if (first >= s.tokens) return;
  const int64_t end = min(first + kOwn, s.tokens),
                begin = max(int64_t{0}, first + 1 - call.window) / kPassing * kPassing;
  const int64_t kv_head = head / (call.heads / call.kv_heads);
  const HeadRows q(s.q, call.heads, head, call.head_dim), dout(s.dout, call.heads, head, call.head_dim);
  const HeadRows k(s.k, call.kv_heads, kv_head, call.head_dim), v(s.v, call.kv_heads, kv_head, call.head_dim);
  start_rows<kDim, kOwn>(tiles.own[0], q, first, end);
  start_rows<kDim, kOwn>(tiles.own[1], dout, first, end);
  start_rows<kDim, kPassing>(tiles.passing[0][0], k, begin, end);
  start_rows<kDim, kPassing>(tiles.passing[1][0], v, begin, end);
  commit_copies();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t query = first + warp * 16 + lane / 4, at = head * call.total + call.first[blockIdx.z] + query;
  const float slope = slope_of(call, head);
  float lse2[2], delta[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const bool is_valid = query + 8 * half < end;
    lse2[half] = is_valid ? call.lse2_at(blockIdx.z, head, query + 8 * half) : 0.0f;
    delta[half] = is_valid ? call.delta[at + 8 * half] : 0.0f;
  }
  float dq[kDim / 8][4] = {};
  int buffer = 0;
  for (int64_t key = begin; key < end; key += kPassing, buffer ^= 1) {
    if (key + kPassing < end) {
      start_rows<kDim, kPassing>(tiles.passing[0][buffer ^ 1], k, key + kPassing, end);
      start_rows<kDim, kPassing>(tiles.passing[1][buffer ^ 1], v, key + kPassing, end);
    }
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    float scores[kPassing / 8][4], dp[kPassing / 8][4];
    multiply_rows<kDim, kPassing>(tiles.own[0], tiles.passing[0][buffer], scores);
    multiply_rows<kDim, kPassing>(tiles.own[1], tiles.passing[1][buffer], dp);
    with_mask(call, first, kOwn, key, kPassing, [&](auto whole) {
#pragma unroll
      for (int n = 0; n < kPassing / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const Score score = seen_score<kSpecial, decltype(whole)::value>(call, scores[n][i], slope, query + i / 2 * 8,
                                                                           key + n * 8 + lane % 4 * 2 + i % 2);
          scores[n][i] = power_of_two(score.log2 - lse2[i / 2]) * (dp[n][i] - delta[i / 2]) * score.slope;
        }
    });
    add_rows<kDim, kPassing>(scores, tiles.passing[0][buffer], dq);
    __syncthreads();
  }
  store_rows<kDim>(s.dq, q, head * call.head_dim, first, end, dq);
}

/// Grid: (tiles of keys, kv heads, sequences). dk and dv of each key, over the heads that share it.
template <int kDim, bool kSpecial>
__global__ void __launch_bounds__(kThreads) key_kernel(const __grid_constant__ GradientCall call) {
  constexpr int kPassing = 32;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& tiles = *reinterpret_cast<Tiles<kDim, kPassing, 2>*>(memory);
  const AttentionGradientSequence& s = call.at[blockIdx.z];
  const int64_t first = int64_t{blockIdx.x} * kOwn, kv_head = blockIdx.y, group = call.heads / call.kv_heads;
  if (first >= s.tokens) return;
  const int64_t end = min(first + kOwn, s.tokens);
  // Queries that see one of these keys, in tiles; those of all heads of the group one after the other.
  const int64_t begin = first / kPassing * kPassing;
  const int64_t last = call.window < s.tokens - end ? end + call.window : s.tokens;
  const int64_t tiles_of_head = (last - begin + kPassing - 1) / kPassing, steps = tiles_of_head * group;
  const HeadRows k(s.k, call.kv_heads, kv_head, call.head_dim), v(s.v, call.kv_heads, kv_head, call.head_dim);
  const auto start = [&](int64_t step, int buffer) {
    const int64_t head = kv_head * group + step / tiles_of_head, query = begin + step % tiles_of_head * kPassing;
    start_rows<kDim, kPassing>(tiles.passing[0][buffer], HeadRows(s.q, call.heads, head, call.head_dim), query, last);
    start_rows<kDim, kPassing>(tiles.passing[1][buffer], HeadRows(s.dout, call.heads, head, call.head_dim), query,
                               last);
  };
  start_rows<kDim, kOwn>(tiles.own[0], k, first, end);
  start_rows<kDim, kOwn>(tiles.own[1], v, first, end);
  start(0, 0);
  commit_copies();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t key = first + warp * 16 + lane / 4;
  float dk[kDim / 8][4] = {}, dv[kDim / 8][4] = {};
  for (int64_t step = 0; step < steps; ++step) {
    const int buffer = static_cast<int>(step % 2);
    if (step + 1 < steps) start(step + 1, buffer ^ 1);
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    const int64_t head = kv_head * group + step / tiles_of_head, query = begin + step % tiles_of_head * kPassing;
    const int64_t at = head * call.total + call.first[blockIdx.z];
    const float slope = slope_of(call, head);
    float p[kPassing / 8][4], ds[kPassing / 8][4];
    multiply_rows<kDim, kPassing>(tiles.own[0], tiles.passing[0][buffer], p);
    multiply_rows<kDim, kPassing>(tiles.own[1], tiles.passing[1][buffer], ds);
    with_mask(call, query, kPassing, first, kOwn, [&](auto whole) {
#pragma unroll
      for (int n = 0; n < kPassing / 8; ++n)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int64_t column = query + n * 8 + lane % 4 * 2 + i;
          const bool is_valid = column < last;
          const float lse2 = is_valid ? call.lse2_at(blockIdx.z, head, column) : INFINITY;
          const float delta = is_valid ? call.delta[at + column] : 0.0f;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int e = i + 2 * half;
            const Score score =
                seen_score<kSpecial, decltype(whole)::value>(call, p[n][e], slope, column, key + 8 * half);
            p[n][e] = power_of_two(score.log2 - lse2);
            ds[n][e] = p[n][e] * (ds[n][e] - delta) * score.slope;
          }
        }
    });
    add_rows<kDim, kPassing>(p, tiles.passing[1][buffer], dv);
    add_rows<kDim, kPassing>(ds, tiles.passing[0][buffer], dk);
    __syncthreads();
  }
  store_rows<kDim>(s.dk, k, kv_head * call.head_dim, first, end, dk);
  store_rows<kDim>(s.dv, v, kv_head * call.head_dim, first, end, dv);
}

template <typename Kernel>
void launch(const Context& context, const GradientCall& call, Kernel kernel, int64_t heads, size_t bytes) {
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  const dim3 grid(blocks_for(call.longest, kOwn), static_cast<unsigned>(heads), static_cast<unsigned>(call.count));
  kernel<<<grid, kThreads, bytes, stream_of(context.stream)>>>(call);
}

template <int kDim, bool kSpecial>
void launch_all(const Context& context, const GradientCall& call) {
  const dim3 grid(blocks_for(call.longest * call.heads, kWarps), 1, static_cast<unsigned>(call.count));
  delta_kernel<<<grid, kThreads, 0, stream_of(context.stream)>>>(call);
  launch(context, call, query_kernel<kDim, kSpecial>, call.heads, sizeof(Tiles<kDim, 32, 2>));
  launch(context, call, key_kernel<kDim, kSpecial>, call.kv_heads, sizeof(Tiles<kDim, 32, 2>));
}

template <int kDim>
void launch_for(const Context& context, const GradientCall& call) {
  is_special(call) ? launch_all<kDim, true>(context, call) : launch_all<kDim, false>(context, call);
}

template <int kDim>
void launch_statistics(const Context& context, const GradientCall& call) {
  const auto kernel = is_special(call) ? statistics_kernel<kDim, true> : statistics_kernel<kDim, false>;
  launch(context, call, kernel, call.heads, sizeof(Tiles<kDim, 64, 1>));
}

}  // namespace

void attention_gradient_tiles(const Context& context, const GradientCall& call) {
  call.head_dim <= 64 ? launch_for<64>(context, call) : launch_for<128>(context, call);
}

void attention_statistics_tiles(const Context& context, const GradientCall& call) {
  call.head_dim <= 64 ? launch_statistics<64>(context, call) : launch_statistics<128>(context, call);
}

}  // namespace nibble::kernels::cuda
