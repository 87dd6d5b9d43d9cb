// Causal attention of many bf16 queries over a bf16 cache on compute capability 9.0: the copy engine brings tiles of
// keys and values, two teams of four warps multiply, each team's softmax beside its own products of values
// (FlashAttention-3, Shah et al., 2024, https://arxiv.org/abs/2407.08608).
#include "kernels/cuda/device/async.cuh"
#include "kernels/cuda/device/attention.cuh"
#include "kernels/cuda/device/attention_tiles.cuh"
#include "kernels/cuda/device/wgmma.cuh"
#include "kernels/cuda/device/wgmma_attention.cuh"
#include "kernels/cuda/device/wgmma_shared.cuh"
#include "kernels/cuda/tensor_map.h"

#pragma nv_diag_suppress 177  // elsewhere the kernel is empty, and what it is made of not referenced

namespace nibble::kernels::cuda {
namespace {

constexpr int kTeams = 2;
constexpr int kTeamThreads = 128;
constexpr int kThreads = (kTeams + 1) * kTeamThreads;  // the first four warps only start copies
constexpr int kQueries = kTeams * 64;                  // of a block
constexpr int kKeys = 128;                             // of a tile
constexpr int kStages = 2;
constexpr float kLog2E = 1.4426950408889634f;
constexpr uint32_t kPanelBytes = kKeys * 128;  // 64 columns of a tile's rows; of the queries' as well

/// One sequence of a launch; arguments have 4 KB.
struct WideSequence {
  CUtensorMap keys, values;
  const __nv_bfloat16* q;
  __nv_bfloat16* out;
  float* lse2;  // or null
  int64_t tokens, past;
};
constexpr int kMostSequences = 12;

struct WideArgs {
  WideSequence sequences[kMostSequences];
  int64_t q_stride, window, lse_stride;
  int heads, group;
  float unit;  // scale * log2(e)
};

/// Shared memory in bytes, from a multiple of 1024 on.
template <int kDim>
struct Layout {
  static constexpr uint32_t kTile = kKeys * kDim * 2;
  static constexpr uint32_t kKeysAt = kQueries * kDim * 2;
  static constexpr uint32_t kValuesAt = kKeysAt + kStages * kTile;
  static constexpr uint32_t kBarriersAt = kValuesAt + kStages * kTile;  // full and free keys, full and free values
  static constexpr uint32_t kBytes = kBarriersAt + 4 * kStages * 8 + 1024;
};

template <int kDim>
struct Places {
  uint32_t base;
  __device__ uint32_t keys(int stage) const { return base + Layout<kDim>::kKeysAt + stage * Layout<kDim>::kTile; }
  __device__ uint32_t values(int stage) const { return base + Layout<kDim>::kValuesAt + stage * Layout<kDim>::kTile; }
  __device__ uint32_t barrier(int kind, int stage) const {
    return base + Layout<kDim>::kBarriersAt + (kind * kStages + stage) * 8;
  }
  __device__ uint32_t full_keys(int stage) const { return barrier(0, stage); }
  __device__ uint32_t free_keys(int stage) const { return barrier(1, stage); }
  __device__ uint32_t full_values(int stage) const { return barrier(2, stage); }
  __device__ uint32_t free_values(int stage) const { return barrier(3, stage); }
};

using Turn = RingTurn<kStages>;

/// Which tiles a block visits: from the last, which the mask cuts, to the first.
struct Range {
  int first, last;  // tiles of kKeys
};

/// Byte of the 8 columns `chunk` in a row of swizzled panels of kQueries rows.
__device__ __forceinline__ uint32_t swizzled_at(int row, int chunk) {
  return static_cast<uint32_t>(chunk / 8) * kPanelBytes + static_cast<uint32_t>(row) * 128 +
         static_cast<uint32_t>((chunk % 8) ^ (row % 8)) * 16;
}

/// The 64 rows of one team: lane l of warp w has rows 16 w + l / 4 and 8 further.
template <int kDim>
struct Rows {
  float out[kDim / 2];
  float maximum[2], total[2];
};

/// Hides what a query does not see; `distance` is from the tile's first key to the thread's first row.
__device__ __forceinline__ void hide(float (&scores)[64], int distance, int window) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    const int ago = distance + i % 4 / 2 * 8 - (i / 4 * 8 + lane % 4 * 2 + i % 2);
    if (ago < 0 || ago >= window) scores[i] = -INFINITY;
  }
}

/// Scores into probabilities, less the maximum; returns by what each half's earlier sums shrink.
template <int kDim>
__device__ __forceinline__ void soften(Rows<kDim>& rows, float (&scores)[64], float unit, float (&shrink)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float highest = rows.maximum[half];
#pragma unroll
    for (int n = 0; n < 16; ++n)
      highest = fmaxf(highest, fmaxf(scores[4 * n + 2 * half], scores[4 * n + 2 * half + 1]));
    highest = fmaxf(highest, __shfl_xor_sync(kFullMask, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(kFullMask, highest, 2));
    const float base = highest == -INFINITY ? 0.0f : highest * unit;  // nothing seen yet
    shrink[half] = power_of_two(fmaf(rows.maximum[half], unit, -base));
    float sum = 0;
#pragma unroll
    for (int n = 0; n < 16; ++n)
#pragma unroll
      for (int i = 4 * n + 2 * half; i < 4 * n + 2 * half + 2; ++i) {
        scores[i] = power_of_two(fmaf(scores[i], unit, -base));
        sum += scores[i];
      }
    rows.total[half] = fmaf(rows.total[half], shrink[half], sum);
    rows.maximum[half] = highest;
  }
}

template <int kDim>
__device__ __forceinline__ void start_scores(float (&scores)[64], uint32_t queries, uint32_t keys) {
#pragma unroll
  for (int d = 0; d < kDim / 16; ++d) {
    const uint32_t at = d / 4 * kPanelBytes + d % 4 * 32;
    multiply_scores(scores, swizzled_operand(queries + at), swizzled_operand(keys + at), d > 0);
  }
  wgmma_commit();
}

template <int kDim>
__device__ __forceinline__ void start_values(Rows<kDim>& rows, const uint32_t (&probabilities)[32], uint32_t values) {
#pragma unroll
  for (int k = 0; k < kKeys / 16; ++k)
    multiply_values(rows.out, probabilities + 4 * k, values_operand(values + k * 2048, kPanelBytes));
  wgmma_commit();
}

template <int kDim>
__device__ void copy_tiles(const WideSequence& sequence, const Places<kDim>& at, Range range, int kv_head) {
  Turn keys, values;
  const auto copy = [&](const CUtensorMap& map, uint32_t to, uint32_t full, int tile) {
    barrier_expect(full, Layout<kDim>::kTile);
    copy_panels<kDim>(to, kPanelBytes, map, tile * kKeys, kv_head, full);
  };
  for (int tile = range.last; tile >= range.first; --tile) {
    barrier_wait(at.free_keys(keys.stage), keys.parity ^ 1);
    copy(sequence.keys, at.keys(keys.stage), at.full_keys(keys.stage), tile);
    keys.advance();
    barrier_wait(at.free_values(values.stage), values.parity ^ 1);
    copy(sequence.values, at.values(values.stage), at.full_values(values.stage), tile);
    values.advance();
  }
}

/// What one team does with its 64 queries.
template <int kDim>
__device__ __forceinline__ void attend(const WideArgs& args, const WideSequence& sequence, const Places<kDim>& at,
                                       Range range, int64_t first_token, int head, int team) {
  const int thread = threadIdx.x % kTeamThreads, lane = thread % 32, warp = thread / 32;
  constexpr int kChunks = kDim / 8;
  unsigned char* memory = static_cast<unsigned char*>(__cvta_shared_to_generic(at.base));
  const int64_t team_token = first_token + team * 64;
#pragma unroll
  for (int i = thread; i < 64 * kChunks; i += kTeamThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const auto* from = reinterpret_cast<const uint4*>(sequence.q + (team_token + row) * args.q_stride + head * kDim);
    const uint4 value = team_token + row < sequence.tokens ? __ldg(from + chunk) : make_uint4(0, 0, 0, 0);
    *reinterpret_cast<uint4*>(memory + swizzled_at(team * 64 + row, chunk)) = value;
  }
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  team_barrier(team);
  const uint32_t queries = at.base + team * 64 * 128;
  const int64_t position = sequence.past + team_token;  // of the team's first query
  const int window = args.window > 0 ? static_cast<int>(min(args.window, int64_t{1} << 30)) : 1 << 30;
  const auto hide_if_cut = [&](float(&scores)[64], int tile) {
    const int distance = static_cast<int>(position - int64_t{tile} * kKeys);
    if (distance < kKeys - 1 || args.window > 0) hide(scores, distance + warp * 16 + lane / 4, window);
  };
  Rows<kDim> rows;
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) rows.out[i] = 0;
  rows.maximum[0] = rows.maximum[1] = -INFINITY;
  rows.total[0] = rows.total[1] = 0;
  Turn keys, values;
  float scores[64], shrink[2];
  uint32_t probabilities[32];
  barrier_wait(at.full_keys(0), 0);
  wgmma_fence();
  start_scores<kDim>(scores, queries, at.keys(0));
  wgmma_wait<0>();
  if (lane == 0) barrier_arrive(at.free_keys(0));
  keys.advance();
  hide_if_cut(scores, range.last);
  soften(rows, scores, args.unit, shrink);
  pack(scores, probabilities);
  for (int tile = range.last - 1; tile >= range.first; --tile) {
    barrier_wait(at.full_keys(keys.stage), keys.parity);
    wgmma_fence();
    start_scores<kDim>(scores, queries, at.keys(keys.stage));
    barrier_wait(at.full_values(values.stage), values.parity);
    start_values(rows, probabilities, at.values(values.stage));
    wgmma_wait<1>();
    if (lane == 0) barrier_arrive(at.free_keys(keys.stage));
    keys.advance();
    hide_if_cut(scores, tile);
    soften(rows, scores, args.unit, shrink);
    wgmma_wait<0>();
    if (lane == 0) barrier_arrive(at.free_values(values.stage));
    values.advance();
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) rows.out[i] *= shrink[i % 4 / 2];
    pack(scores, probabilities);
  }
  barrier_wait(at.full_values(values.stage), values.parity);
  wgmma_fence();
  start_values(rows, probabilities, at.values(values.stage));
  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = rows.total[half];
    total += __shfl_xor_sync(kFullMask, total, 1);
    total += __shfl_xor_sync(kFullMask, total, 2);
    inverse[half] = 1.0f / total;
    const int64_t token = team_token + warp * 16 + lane / 4 + half * 8;
    if (sequence.lse2 && lane % 4 == 0 && token < sequence.tokens)
      sequence.lse2[head * args.lse_stride + token] = fmaf(rows.maximum[half], args.unit, log2f(total));
  }
  wgmma_wait<0>();
  // Through the queries' place, so that rows leave whole.
  team_barrier(team);
#pragma unroll
  for (int n = 0; n < kChunks; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = team * 64 + warp * 16 + lane / 4 + half * 8;
      const float* pair = rows.out + 4 * n + 2 * half;
      *reinterpret_cast<uint32_t*>(memory + swizzled_at(row, n) + lane % 4 * 4) =
          pack_pair(pair[0] * inverse[half], pair[1] * inverse[half]);
    }
  team_barrier(team);
#pragma unroll
  for (int i = thread; i < 64 * kChunks; i += kTeamThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    if (team_token + row >= sequence.tokens) break;
    auto* to = reinterpret_cast<uint4*>(sequence.out + ((team_token + row) * args.heads + head) * kDim);
    to[chunk] = *reinterpret_cast<const uint4*>(memory + swizzled_at(team * 64 + row, chunk));
  }
}

/// Grid: (heads, tiles of queries, sequences); the last tiles, which see most keys, start first.
template <int kDim>
__global__ void __launch_bounds__(kThreads, 1) wide_kernel(const __grid_constant__ WideArgs args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ unsigned char memory[];
  const WideSequence& sequence = args.sequences[blockIdx.z];
  const int64_t first_token = static_cast<int64_t>(gridDim.y - 1 - blockIdx.y) * kQueries;
  if (first_token >= sequence.tokens) return;
  const Places<kDim> at{(shared_address(memory) + 1023) / 1024 * 1024};
  const int64_t end = sequence.past + min(first_token + kQueries, sequence.tokens);
  const int64_t begin = args.window > 0 ? max(int64_t{0}, sequence.past + first_token + 1 - args.window) : 0;
  const Range range{static_cast<int>(begin / kKeys), static_cast<int>((end - 1) / kKeys)};
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(at.full_keys(stage), 1);
      barrier_init(at.full_values(stage), 1);
      barrier_init(at.free_keys(stage), kTeams * 4);
      barrier_init(at.free_values(stage), kTeams * 4);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  const int head = blockIdx.x;
  if (threadIdx.x < kTeamThreads) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == 0) copy_tiles<kDim>(sequence, at, range, head / args.group);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    attend<kDim>(args, sequence, at, range, first_token, head, static_cast<int>(threadIdx.x) / kTeamThreads - 1);
  }
#endif
}

template <int kDim>
bool launch(const Context& context, const AttentionArgs& args, const Sequences& sequences) {
  WideArgs wide;
  wide.q_stride = args.q_stride;
  wide.window = args.window;
  wide.lse_stride = args.lse_stride;
  wide.heads = static_cast<int>(args.heads);
  wide.group = static_cast<int>(args.heads / args.kv_heads);
  wide.unit = args.scale * kLog2E;
  const auto kernel = wide_kernel<kDim>;
  constexpr auto kBytes = static_cast<int>(Layout<kDim>::kBytes);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  for (int first = 0; first < sequences.count; first += kMostSequences) {
    const int count = sequences.count - first < kMostSequences ? sequences.count - first : kMostSequences;
    int64_t tokens = 0;
    for (int s = 0; s < count; ++s) {
      const AttentionSequence& from = sequences.at[first + s];
      WideSequence& to = wide.sequences[s];
      const int64_t keys = from.past + from.tokens;
      if (!describe_heads(to.keys, from.k, args.kv_heads, from.capacity, keys, kDim, kKeys) ||
          !describe_heads(to.values, from.v, args.kv_heads, from.capacity, keys, kDim, kKeys))
        return false;  // the first of a call or none
      to.q = static_cast<const __nv_bfloat16*>(from.q);
      to.out = static_cast<__nv_bfloat16*>(from.out);
      to.lse2 = from.lse2;
      to.tokens = from.tokens;
      to.past = from.past;
      tokens = from.tokens > tokens ? from.tokens : tokens;
    }
    const dim3 grid(static_cast<unsigned>(args.heads), blocks_for(tokens, kQueries), static_cast<unsigned>(count));
    kernel<<<grid, kThreads, kBytes, stream_of(context.stream)>>>(wide);
  }
  return true;
}

}  // namespace

bool suits_wide(const Context& context, const AttentionArgs& args, const AttentionSequence& sequence) {
  return context.capability == 90 && args.q_dtype == DType::bf16 && (args.head_dim == 64 || args.head_dim == 128) &&
         args.q_stride % 8 == 0 && is_packed(sequence.q) && is_packed(sequence.out) && !sequence.past_at &&
         args.softcap == 0 && !args.alibi_slopes && args.scale > 0 && sequence.tokens < int64_t{65535} * kQueries;
}

void attention_wide(const Context& context, const AttentionArgs& args, const Sequences& sequences) {
  const bool is_done =
      args.head_dim == 64 ? launch<64>(context, args, sequences) : launch<128>(context, args, sequences);
  if (!is_done) attention_prefill(context, args, sequences);
}

}  // namespace nibble::kernels::cuda
