// Causal attention of many queries over a bf16 cache: tiles on tensor cores with a running softmax, as
// FlashAttention-2 (Dao, 2023). Queries and probabilities are rounded to bf16; sums are fp32.
#include "kernels/cuda/device/attention.cuh"
#include "kernels/cuda/device/mma.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kQueries = kWarps * 16;  // of a block
constexpr int kKeys = 64;              // of a tile
constexpr float kLog2E = 1.4426950408889634f;

/// Tiles of shared memory; a row's 16 bytes of padding keep the loads of matrices free of bank conflicts.
template <int kDim>
struct Tiles {
  static constexpr int kStride = kDim + 8;
  __nv_bfloat16 k[kKeys * kStride];
  __nv_bfloat16 v[kKeys * kStride];
  /// Heads of up to 128 elements keep their queries in registers; those pass through v at the start.
  static constexpr bool kKeepsQueries = kDim > 128;
  __nv_bfloat16 q[kKeepsQueries ? kQueries * kStride : 8];
};

/// Starts copying kKeys rows of the cache from row `first` on; zeros beyond `end` and beyond the head's size.
template <int kDim>
__device__ __forceinline__ void start_tile(__nv_bfloat16* to, const __nv_bfloat16* rows, int64_t first, int64_t end,
                                           int dim) {
  constexpr int kChunks = kDim / 8;
  for (int i = threadIdx.x; i < kKeys * kChunks; i += kThreads) {
    const int row = i / kChunks, column = i % kChunks * 8;
    const bool is_valid = first + row < end && column < dim;
    copy_async_16(to + row * Tiles<kDim>::kStride + column, is_valid ? rows + (first + row) * dim + column : rows,
                  is_valid);
  }
  commit_copies();
}

template <int kDim>
__device__ __forceinline__ void store_queries(__nv_bfloat16* to, const AttentionArgs& args,
                                              const AttentionSequence& sequence, int64_t first, int64_t tokens) {
  const int dim = static_cast<int>(args.head_dim);
  for (int i = threadIdx.x; i < kQueries * (kDim / 2); i += kThreads) {
    const int row = i / (kDim / 2), column = i % (kDim / 2) * 2;
    const bool is_valid = row < tokens && column < dim;
    const int64_t from = first + row * args.q_stride + column;
    const uint32_t pair = is_valid ? pack_bf16(query_at(args, sequence, from), query_at(args, sequence, from + 1)) : 0u;
    *reinterpret_cast<uint32_t*>(to + row * Tiles<kDim>::kStride + column) = pair;
  }
}

/// The 16 rows of one warp: lane l has rows l / 4 and l / 4 + 8.
template <int kDim>
struct Rows {
  float out[kDim / 8][4];
  float maximum[2], total[2];
};

/// Scores of one tile into probabilities 2^(unit * score), less the maximum; sums so far shrink where a maximum rises.
template <int kDim>
__device__ __forceinline__ void soften(Rows<kDim>& rows, float (&scores)[kKeys / 8][4], float unit) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float highest = rows.maximum[half];
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) highest = fmaxf(highest, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    highest = fmaxf(highest, __shfl_xor_sync(kFullMask, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(kFullMask, highest, 2));
    const float base = highest == -INFINITY ? 0.0f : highest * unit;  // nothing seen yet
    const float shrink = power_of_two(fmaf(rows.maximum[half], unit, -base));
    float sum = 0;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        scores[n][i] = power_of_two(fmaf(scores[n][i], unit, -base));
        sum += scores[n][i];
      }
    rows.total[half] = fmaf(rows.total[half], shrink, sum);
    rows.maximum[half] = highest;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      rows.out[n][2 * half] *= shrink;
      rows.out[n][2 * half + 1] *= shrink;
    }
  }
}

/// A warp's 16 queries as mma takes them: from registers, or from shared memory each time.
template <int kDim>
struct Queries {
  static constexpr bool kIsKept = Tiles<kDim>::kKeepsQueries;
  uint32_t held[kIsKept ? 1 : kDim / 16][4];

  __device__ __forceinline__ static void load(uint32_t (&to)[4], const __nv_bfloat16* q, int d) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    load_matrices(to, q + (warp * 16 + lane % 16) * Tiles<kDim>::kStride + d + lane / 16 * 8);
  }
  __device__ __forceinline__ void hold(const __nv_bfloat16* q) {
    if constexpr (!kIsKept) {
#pragma unroll
      for (int d = 0; d < kDim; d += 16) load(held[d / 16], q, d);
    }
  }
};

/// scores (16, kKeys) = q k^T.
template <int kDim>
__device__ __forceinline__ void multiply_keys(const Tiles<kDim>& tiles, const Queries<kDim>& queries, int lane,
                                              float (&scores)[kKeys / 8][4]) {
  constexpr int kStride = Tiles<kDim>::kStride;
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[n][i] = 0;
#pragma unroll
  for (int d = 0; d < kDim; d += 16) {
    uint32_t q[4];
    if constexpr (Queries<kDim>::kIsKept) {
      Queries<kDim>::load(q, tiles.q, d);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) q[i] = queries.held[d / 16][i];
    }
#pragma unroll
    for (int n = 0; n < kKeys / 8; n += 2) {
      uint32_t k[4];
      load_matrices(k, tiles.k + (n * 8 + lane % 8 + lane / 16 * 8) * kStride + d + lane / 8 % 2 * 8);
      multiply_bf16(scores[n], q, k[0], k[1]);
      multiply_bf16(scores[n + 1], q, k[2], k[3]);
    }
  }
}

/// out (16, kDim) += probabilities . v.
template <int kDim>
__device__ __forceinline__ void multiply_values(const Tiles<kDim>& tiles, int lane, const float (&p)[kKeys / 8][4],
                                                Rows<kDim>& rows) {
  constexpr int kStride = Tiles<kDim>::kStride;
#pragma unroll
  for (int key = 0; key < kKeys; key += 16) {
    const int n = key / 8;
    const uint32_t a[4] = {pack_bf16(p[n][0], p[n][1]), pack_bf16(p[n][2], p[n][3]),
                           pack_bf16(p[n + 1][0], p[n + 1][1]), pack_bf16(p[n + 1][2], p[n + 1][3])};
#pragma unroll
    for (int d = 0; d < kDim; d += 16) {
      uint32_t v[4];
      load_matrices_transposed(v, tiles.v + (key + lane % 8 + lane / 8 % 2 * 8) * kStride + d + lane / 16 * 8);
      multiply_bf16(rows.out[d / 8], a, v[0], v[1]);
      multiply_bf16(rows.out[d / 8 + 1], a, v[2], v[3]);
    }
  }
}

/// Hides what a query does not see; `position` is that of the thread's first row, counted from the tile's first key.
template <bool kIsPlain>
__device__ __forceinline__ void finish_scores(const AttentionArgs& args, float (&scores)[kKeys / 8][4], int64_t head,
                                              int64_t first, int64_t position) {
  const int row = static_cast<int>(position - first), lane = threadIdx.x % 32;
  const int window = args.window > 0 ? static_cast<int>(min(args.window, int64_t{1} << 30)) : 1 << 30;
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = n * 8 + lane % 4 * 2 + i % 2, distance = row + i / 2 * 8 - key;
      if constexpr (!kIsPlain) scores[n][i] = finish_score(args, scores[n][i], head, position + i / 2 * 8, first + key);
      if (distance < 0 || distance >= window) scores[n][i] = -INFINITY;
    }
}

/// Grid: (tiles of queries, heads, sequences); the last tiles, which see most keys, start first. kIsPlain: scores are
/// scaled and nothing else.
template <int kDim, bool kIsPlain>
__global__ void __launch_bounds__(kThreads)
    prefill_kernel(const __grid_constant__ AttentionArgs args, const __grid_constant__ Sequences sequences) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& tiles = *reinterpret_cast<Tiles<kDim>*>(memory);
  const AttentionSequence& sequence = sequences.at[blockIdx.z];
  const int64_t first_token = static_cast<int64_t>(gridDim.x - 1 - blockIdx.x) * kQueries;
  if (first_token >= sequence.tokens) return;
  const int64_t head = blockIdx.y, kv_head = head / (args.heads / args.kv_heads);
  const int dim = static_cast<int>(args.head_dim), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t past = past_of(sequence), tokens = min(static_cast<int64_t>(kQueries), sequence.tokens - first_token);
  const int64_t end = past + first_token + tokens;
  const int64_t begin = args.window > 0 ? max(int64_t{0}, past + first_token + 1 - args.window) / kKeys * kKeys : 0;
  const auto* k = static_cast<const __nv_bfloat16*>(sequence.k) + kv_head * sequence.capacity * dim;
  const auto* v = static_cast<const __nv_bfloat16*>(sequence.v) + kv_head * sequence.capacity * dim;

  start_tile<kDim>(tiles.k, k, begin, end, dim);
  __nv_bfloat16* staged = Queries<kDim>::kIsKept ? tiles.q : tiles.v;
  store_queries<kDim>(staged, args, sequence, first_token * args.q_stride + head * dim, tokens);
  Queries<kDim> queries;
  __syncthreads();
  queries.hold(staged);
  __syncthreads();
  Rows<kDim> rows;
#pragma unroll
  for (int n = 0; n < kDim / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) rows.out[n][i] = 0;
  rows.maximum[0] = rows.maximum[1] = -INFINITY;
  rows.total[0] = rows.total[1] = 0;
  const int64_t first_position = past + first_token + warp * 16 + lane / 4;  // and 8 further
  const float unit = kIsPlain ? args.scale * kLog2E : kLog2E;

  for (int64_t first = begin; first < end; first += kKeys) {
    start_tile<kDim>(tiles.v, v, first, end, dim);
    wait_copies<1>();
    __syncthreads();
    float scores[kKeys / 8][4];
    multiply_keys<kDim>(tiles, queries, lane, scores);
    __syncthreads();  // every warp has read the keys
    if (first + kKeys < end)
      start_tile<kDim>(tiles.k, k, first + kKeys, end, dim);
    else
      commit_copies();  // an empty group, so that the count below holds
    const bool is_seen_whole = first + kKeys <= past + first_token + 1 && args.window == 0;
    if (!kIsPlain || !is_seen_whole) finish_scores<kIsPlain>(args, scores, head, first, first_position);
    soften<kDim>(rows, scores, unit);
    wait_copies<1>();
    __syncthreads();
    multiply_values<kDim>(tiles, lane, scores, rows);
    __syncthreads();  // every warp has read the values
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = rows.total[half];
    total += __shfl_xor_sync(kFullMask, total, 1);
    total += __shfl_xor_sync(kFullMask, total, 2);
    const int64_t token = warp * 16 + lane / 4 + half * 8;
    if (sequence.lse2 && lane % 4 == 0 && token < tokens)
      sequence.lse2[head * args.lse_stride + first_token + token] = fmaf(rows.maximum[half], unit, log2f(total));
    const int64_t out = ((first_token + token) * args.heads + head) * dim;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const int column = n * 8 + lane % 4 * 2;
      if (token >= tokens || column >= dim) continue;
      put_result(args, sequence, out + column, rows.out[n][2 * half] / total);
      put_result(args, sequence, out + column + 1, rows.out[n][2 * half + 1] / total);
    }
  }
}

template <int kDim, bool kIsPlain>
void launch(const Context& context, const AttentionArgs& args, const Sequences& sequences) {
  int64_t tokens = 0;
  for (int s = 0; s < sequences.count; ++s) tokens = sequences.at[s].tokens > tokens ? sequences.at[s].tokens : tokens;
  const dim3 grid(blocks_for(tokens, kQueries), static_cast<unsigned>(args.heads),
                  static_cast<unsigned>(sequences.count));
  constexpr size_t kBytes = sizeof(Tiles<kDim>);
  const auto kernel = prefill_kernel<kDim, kIsPlain>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kBytes));
  kernel<<<grid, kThreads, kBytes, stream_of(context.stream)>>>(args, sequences);
}

template <int kDim>
void choose_scores(const Context& context, const AttentionArgs& args, const Sequences& sequences) {
  const bool is_plain = args.softcap == 0 && !args.alibi_slopes && args.scale > 0;
  is_plain ? launch<kDim, true>(context, args, sequences) : launch<kDim, false>(context, args, sequences);
}

}  // namespace

void attention_prefill(const Context& context, const AttentionArgs& args, const Sequences& sequences) {
  if (args.head_dim <= 64) return choose_scores<64>(context, args, sequences);
  if (args.head_dim <= 96) return choose_scores<96>(context, args, sequences);
  if (args.head_dim <= 128) return choose_scores<128>(context, args, sequences);
  choose_scores<256>(context, args, sequences);
}

}  // namespace nibble::kernels::cuda
