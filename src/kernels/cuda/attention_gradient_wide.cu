// The attention gradient on compute capability 9.0: the copy engine brings tiles, two teams of four warps multiply,
// each team's exponentials beside the other's products. One kernel for queries' gradients and, transposed, for keys'
// and values', so that no sum needs an atomic (FlashAttention-3, Shah et al., 2024, fuses them).
#include "kernels/cuda/device/async.cuh"
#include "kernels/cuda/device/attention_gradient.cuh"
#include "kernels/cuda/device/attention_tiles.cuh"
#include "kernels/cuda/device/tensor_core.cuh"
#include "kernels/cuda/device/vector.cuh"
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
constexpr int kRows = 64;                              // of a team, and of a tile that passes by
constexpr int kOwn = kTeams * kRows;                   // rows of a block: queries, or keys
constexpr int kStages = 3;
constexpr uint32_t kPanelBytes = kRows * 128;  // 64 columns of a tile's rows
constexpr uint32_t kStatisticsBytes = kRows * 8;

/// One sequence of a launch; arguments have 4 KB.
struct WideSequence {
  CUtensorMap q, dout, k, v;
  __nv_bfloat16 *dq, *dk, *dv;
  const float2* statistics;  // (heads, padded): lse2 and delta of a query
  int64_t tokens, padded;
};
constexpr int kMostSequences = 6;

struct WideCall {
  WideSequence sequences[kMostSequences];
  int64_t window;
  int heads, kv_heads, group;
  float scale, unit;  // unit: scale * log2(e)
};

/// Shared memory in bytes, from a multiple of 1024 on. A block's own tensors are q and dout, or k and v; those that
/// pass by the others.
template <int kDim>
struct Layout {
  static constexpr uint32_t kTile = kRows * kDim * 2;
  static constexpr uint32_t kPassingAt = 2 * kTeams * kTile;
  static constexpr uint32_t kStatisticsAt = kPassingAt + kStages * 2 * kTile;
  static constexpr uint32_t kBarriersAt = kStatisticsAt + kStages * kStatisticsBytes;  // full, free, own
  static constexpr uint32_t kBytes = kBarriersAt + (2 * kStages + 1) * 8 + 1024;
};

template <int kDim>
struct Places {
  using L = Layout<kDim>;
  uint32_t base;
  __device__ uint32_t own(int tensor, int team) const { return base + (tensor * kTeams + team) * L::kTile; }
  __device__ uint32_t passing(int tensor, int stage) const {
    return base + L::kPassingAt + (2 * stage + tensor) * L::kTile;
  }
  __device__ uint32_t statistics(int stage) const { return base + L::kStatisticsAt + stage * kStatisticsBytes; }
  __device__ uint32_t full(int stage) const { return base + L::kBarriersAt + stage * 8; }
  __device__ uint32_t free(int stage) const { return base + L::kBarriersAt + (kStages + stage) * 8; }
  __device__ uint32_t whole_own() const { return base + L::kBarriersAt + 2 * kStages * 8; }
};

using Turn = RingTurn<kStages>;

/// The tiles that pass by: of each head of a group, `count` from `first` on; keys' from the last to the first, so that
/// blocks beside each other read the same ones.
struct Visit {
  int first, count, heads;
  __device__ int tile(bool is_keys, int i) const { return is_keys ? first + count - 1 - i : first + i; }
};

/// Copies one 64-row tile of a head.
template <int kDim>
__device__ __forceinline__ void copy_tile(uint32_t to, const CUtensorMap& map, int64_t row, int head,
                                          uint32_t barrier) {
  copy_panels<kDim>(to, kPanelBytes, map, static_cast<int>(row), head, barrier);
}

template <int kDim, bool kIsKeys>
__device__ void copy_tiles(const WideCall& call, const WideSequence& s, const Places<kDim>& at, const Visit& visit,
                           int64_t own_first, int head) {
  const CUtensorMap& own0 = kIsKeys ? s.k : s.q;
  const CUtensorMap& own1 = kIsKeys ? s.v : s.dout;
  const CUtensorMap& passing0 = kIsKeys ? s.q : s.k;
  const CUtensorMap& passing1 = kIsKeys ? s.dout : s.v;
  barrier_expect(at.whole_own(), 2 * kTeams * Layout<kDim>::kTile);
  for (int team = 0; team < kTeams; ++team) {
    copy_tile<kDim>(at.own(0, team), own0, own_first + team * kRows, head, at.whole_own());
    copy_tile<kDim>(at.own(1, team), own1, own_first + team * kRows, head, at.whole_own());
  }
  Turn turn;
  for (int h = 0; h < visit.heads; ++h) {
    const int other = kIsKeys ? head * call.group + h : head / call.group;
    for (int i = 0; i < visit.count; ++i, turn.advance()) {
      const int64_t row = int64_t{visit.tile(kIsKeys, i)} * kRows;
      const uint32_t full = at.full(turn.stage);
      barrier_wait(at.free(turn.stage), turn.parity ^ 1);
      barrier_expect(full, 2 * Layout<kDim>::kTile + (kIsKeys ? kStatisticsBytes : 0));
      copy_tile<kDim>(at.passing(0, turn.stage), passing0, row, other, full);
      copy_tile<kDim>(at.passing(1, turn.stage), passing1, row, other, full);
      if constexpr (kIsKeys)
        copy_bulk(at.statistics(turn.stage), s.statistics + other * s.padded + row, kStatisticsBytes, full);
    }
  }
}

/// out (64, 64) = own rows times passing rows.
template <int kDim>
__device__ __forceinline__ void start_product(float (&out)[32], uint32_t own, uint32_t passing) {
#pragma unroll
  for (int d = 0; d < kDim / 16; ++d) {
    const uint32_t offset = d / 4 * kPanelBytes + d % 4 * 32;
    multiply_scores(out, swizzled_operand(own + offset), swizzled_operand(passing + offset), d > 0);
  }
  wgmma_commit();
}

/// sum (64, kDim) += weights (64, 64) . passing rows.
template <int kDim>
__device__ __forceinline__ void start_sum(float (&sum)[kDim / 2], const uint32_t (&weights)[16], uint32_t passing) {
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k)
    multiply_values(sum, weights + 4 * k, values_operand(passing + k * 2048, kPanelBytes));
  wgmma_commit();
}

/// What a thread knows of the queries in its part of a tile: rows where queries are its own, else columns.
template <bool kIsKeys>
struct Statistics {
  float2 rows[2];
  uint32_t columns;  // in shared memory, from the thread's first column on

  /// Element i of a thread's (64, 64) part: its lse2, or its delta.
  template <bool kIsDelta>
  __device__ __forceinline__ void load(int n, float (&to)[4]) const {
    if constexpr (kIsKeys) {
      float4 pair;
      asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
                   : "=f"(pair.x), "=f"(pair.y), "=f"(pair.z), "=f"(pair.w)
                   : "r"(columns + n * 64));
      to[0] = to[2] = kIsDelta ? pair.y : pair.x;
      to[1] = to[3] = kIsDelta ? pair.w : pair.z;
    } else {
      to[0] = to[1] = kIsDelta ? rows[0].y : rows[0].x;
      to[2] = to[3] = kIsDelta ? rows[1].y : rows[1].x;
    }
  }
};

/// Products to probabilities.
template <bool kIsKeys>
__device__ __forceinline__ void soften(float (&scores)[32], const Statistics<kIsKeys>& statistics, float unit) {
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    float lse2[4];
    statistics.template load<false>(n, lse2);
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[4 * n + i] = power_of_two(fmaf(scores[4 * n + i], unit, -lse2[i]));
  }
}

/// No probability where a query does not see a key; `distance` is from key to query at the thread's first element.
template <bool kIsKeys>
__device__ __forceinline__ void hide(float (&probabilities)[32], int64_t distance, int64_t window) {
  const auto first = static_cast<int>(distance);
  const int most = static_cast<int>(min(window, int64_t{1} << 30));
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int row = i % 4 / 2 * 8, column = i / 4 * 8 + i % 2;
    const int ago = kIsKeys ? first + column - row : first + row - column;
    if (ago < 0 || ago >= most) probabilities[i] = 0;
  }
}

template <bool kIsKeys>
__device__ __forceinline__ void differentiate(float (&slopes)[32], const float (&probabilities)[32],
                                              const Statistics<kIsKeys>& statistics) {
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    float delta[4];
    statistics.template load<true>(n, delta);
#pragma unroll
    for (int i = 0; i < 4; ++i) slopes[4 * n + i] = probabilities[4 * n + i] * (slopes[4 * n + i] - delta[i]);
  }
}

/// A team's 64 rows to (tokens, heads, kDim), through its own tile of shared memory, so that rows leave whole.
template <int kDim>
__device__ __forceinline__ void store_sum(__nv_bfloat16* to, const float (&sum)[kDim / 2], float factor, uint32_t tile,
                                          int64_t first, int64_t tokens, int heads, int head, int team) {
  constexpr int kChunks = kDim / 8;
  const int thread = threadIdx.x % kTeamThreads, lane = thread % 32, warp = thread / 32;
  auto* memory = static_cast<unsigned char*>(__cvta_shared_to_generic(tile));
  const auto place = [&](int row, int chunk) {
    return memory + chunk / 8 * kPanelBytes + row * 128 + ((chunk % 8) ^ (row % 8)) * 16;
  };
#pragma unroll
  for (int n = 0; n < kChunks; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      *reinterpret_cast<uint32_t*>(place(warp * 16 + lane / 4 + half * 8, n) + lane % 4 * 4) =
          pack_pair(sum[4 * n + 2 * half] * factor, sum[4 * n + 2 * half + 1] * factor);
  team_barrier(team);
#pragma unroll
  for (int i = thread; i < kRows * kChunks; i += kTeamThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    if (first + row >= tokens) break;
    auto* line = reinterpret_cast<uint4*>(to + ((first + row) * heads + head) * kDim);
    line[chunk] = *reinterpret_cast<const uint4*>(place(row, chunk));
  }
}

/// What one team does with its 64 rows from `first` on.
template <int kDim, bool kIsKeys>
__device__ __forceinline__ void differentiate_rows(const WideCall& call, const WideSequence& s, const Places<kDim>& at,
                                                   const Visit& visit, int64_t first, int head, int team) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x % kTeamThreads / 32;
  const int64_t row = first + warp * 16 + lane / 4;
  Statistics<kIsKeys> statistics;
  if constexpr (!kIsKeys) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      statistics.rows[half] =
          row + 8 * half < s.padded ? s.statistics[head * s.padded + row + 8 * half] : make_float2(INFINITY, 0);
  }
  float slope_sum[kDim / 2], sum[kIsKeys ? kDim / 2 : 1];
#pragma unroll
  for (float& x : slope_sum) x = 0;
#pragma unroll
  for (float& x : sum) x = 0;
  barrier_wait(at.whole_own(), 0);
  Turn turn;
  for (int h = 0; h < visit.heads; ++h)
    for (int i = 0; i < visit.count; ++i, turn.advance()) {
      const int64_t other = int64_t{visit.tile(kIsKeys, i)} * kRows;
      float products[32], slopes[32];
      uint32_t probabilities[16], weights[16];
      barrier_wait(at.full(turn.stage), turn.parity);
      wgmma_fence();
      start_product<kDim>(products, at.own(0, team), at.passing(0, turn.stage));
      start_product<kDim>(slopes, at.own(1, team), at.passing(1, turn.stage));
      if constexpr (kIsKeys) statistics.columns = at.statistics(turn.stage) + lane % 4 * 16;
      wgmma_wait<1>();
      soften(products, statistics, call.unit);
      const int64_t query = kIsKeys ? other : first, key = kIsKeys ? first : other;
      if (key + kRows - 1 > query || query + kRows - 1 - key >= call.window)
        hide<kIsKeys>(products, kIsKeys ? other + lane % 4 * 2 - row : row - other - lane % 4 * 2, call.window);
      if constexpr (kIsKeys) {
        pack(products, probabilities);
        wgmma_fence();
        start_sum<kDim>(sum, probabilities, at.passing(1, turn.stage));
        wgmma_wait<1>();
      } else {
        wgmma_wait<0>();
      }
      differentiate(slopes, products, statistics);
      pack(slopes, weights);
      wgmma_fence();
      start_sum<kDim>(slope_sum, weights, at.passing(0, turn.stage));
      wgmma_wait<0>();
      if (lane == 0) barrier_arrive(at.free(turn.stage));
    }
  if constexpr (kIsKeys) {
    store_sum<kDim>(s.dk, slope_sum, call.scale, at.own(0, team), first, s.tokens, call.kv_heads, head, team);
    store_sum<kDim>(s.dv, sum, 1, at.own(1, team), first, s.tokens, call.kv_heads, head, team);
  } else {
    store_sum<kDim>(s.dq, slope_sum, call.scale, at.own(0, team), first, s.tokens, call.heads, head, team);
  }
}

/// Grid: (heads, or those of keys; tiles of queries or of keys; sequences). The tiles that see most start first.
template <int kDim, bool kIsKeys>
__global__ void __launch_bounds__(kThreads, 1) wide_gradient_kernel(const __grid_constant__ WideCall call) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ unsigned char memory[];
  const WideSequence& s = call.sequences[blockIdx.z];
  const int64_t first = static_cast<int64_t>(kIsKeys ? blockIdx.y : gridDim.y - 1 - blockIdx.y) * kOwn;
  if (first >= s.tokens) return;
  const Places<kDim> at{(shared_address(memory) + 1023) / 1024 * 1024};
  const int64_t end = min(first + kOwn, s.tokens);
  const int64_t begin = kIsKeys ? first : max(int64_t{0}, first + 1 - call.window);
  const int64_t last = kIsKeys ? (call.window < s.tokens - end ? end + call.window : s.tokens) : end;
  Visit visit{static_cast<int>(begin / kRows), 0, kIsKeys ? call.group : 1};
  visit.count = static_cast<int>((last - 1) / kRows) + 1 - visit.first;
  if (threadIdx.x == 0) {
    barrier_init(at.whole_own(), 1);
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(at.full(stage), 1);
      barrier_init(at.free(stage), kTeams * 4);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  const int head = blockIdx.x;
  if (threadIdx.x < kTeamThreads) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == 0) copy_tiles<kDim, kIsKeys>(call, s, at, visit, first, head);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    const int team = static_cast<int>(threadIdx.x) / kTeamThreads - 1;
    differentiate_rows<kDim, kIsKeys>(call, s, at, visit, first + team * kRows, head, team);
  }
#endif
}

/// Statistics of all sequences as one array of (heads, padded tokens); queries beyond a sequence's end see nothing.
struct StatisticsCall {
  AttentionGradientSequence at[kMostSequences];
  const float* lse2[kMostSequences];
  float2* to[kMostSequences];
  int64_t lse_stride, heads, head_dim;
};

int64_t padded_of(int64_t tokens) { return (tokens + kRows - 1) / kRows * kRows; }

/// A warp a query and head.
__global__ void __launch_bounds__(128) pair_statistics_kernel(const __grid_constant__ StatisticsCall call) {
  const AttentionGradientSequence& s = call.at[blockIdx.y];
  const int64_t padded = (s.tokens + kRows - 1) / kRows * kRows;
  const int64_t index = int64_t{blockIdx.x} * 4 + threadIdx.x / 32, token = index / call.heads,
                head = index % call.heads;
  if (token >= padded) return;
  float delta = 0, lse2 = INFINITY;
  if (token < s.tokens) {
    const auto* out = reinterpret_cast<const __nv_bfloat162*>(s.out) + index * (call.head_dim / 2);
    const auto* dout = reinterpret_cast<const __nv_bfloat162*>(s.dout) + index * (call.head_dim / 2);
    for (int64_t d = threadIdx.x % 32; d < call.head_dim / 2; d += 32) {
      const float2 a = __bfloat1622float2(out[d]), b = __bfloat1622float2(dout[d]);
      delta = fmaf(a.x, b.x, fmaf(a.y, b.y, delta));
    }
    delta = warp_sum(delta);
    lse2 = call.lse2[blockIdx.y][head * call.lse_stride + token];
  }
  if (threadIdx.x % 32 == 0) call.to[blockIdx.y][head * padded + token] = make_float2(lse2, delta);
}

bool describe(WideSequence& to, const AttentionGradientSequence& from, const GradientCall& call) {
  const int64_t dim = call.head_dim;
  to.dq = reinterpret_cast<__nv_bfloat16*>(from.dq);
  to.dk = reinterpret_cast<__nv_bfloat16*>(from.dk);
  to.dv = reinterpret_cast<__nv_bfloat16*>(from.dv);
  to.tokens = from.tokens;
  to.padded = padded_of(from.tokens);
  return describe_tokens(to.q, from.q, from.tokens, call.heads, dim, kRows) &&
         describe_tokens(to.dout, from.dout, from.tokens, call.heads, dim, kRows) &&
         describe_tokens(to.k, from.k, from.tokens, call.kv_heads, dim, kRows) &&
         describe_tokens(to.v, from.v, from.tokens, call.kv_heads, dim, kRows);
}

template <int kDim, bool kIsKeys>
void launch(const Context& context, const WideCall& call, int64_t longest, int count) {
  const auto kernel = wide_gradient_kernel<kDim, kIsKeys>;
  constexpr auto kBytes = static_cast<int>(Layout<kDim>::kBytes);
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  const dim3 grid(static_cast<unsigned>(kIsKeys ? call.kv_heads : call.heads), blocks_for(longest, kOwn),
                  static_cast<unsigned>(count));
  kernel<<<grid, kThreads, kBytes, stream_of(context.stream)>>>(call);
}

template <int kDim>
bool launch_all(const Context& context, const GradientCall& call, float2* statistics) {
  WideCall wide;
  wide.window = call.window;
  wide.heads = static_cast<int>(call.heads);
  wide.kv_heads = static_cast<int>(call.kv_heads);
  wide.group = static_cast<int>(call.heads / call.kv_heads);
  wide.scale = call.scale;
  wide.unit = call.scale * kLog2E;
  for (int first = 0; first < call.count; first += kMostSequences) {
    const int count = call.count - first < kMostSequences ? call.count - first : kMostSequences;
    StatisticsCall pairs;
    pairs.lse_stride = call.lse_stride;
    pairs.heads = call.heads;
    pairs.head_dim = call.head_dim;
    int64_t longest = 0;
    for (int i = 0; i < count; ++i) {
      const AttentionGradientSequence& from = call.at[first + i];
      if (!describe(wide.sequences[i], from, call)) return false;  // the first of a call or none
      wide.sequences[i].statistics = statistics;
      pairs.at[i] = from;
      pairs.lse2[i] = from.lse2;
      pairs.to[i] = statistics;
      statistics += call.heads * padded_of(from.tokens);
      longest = from.tokens > longest ? from.tokens : longest;
    }
    const dim3 grid(blocks_for(padded_of(longest) * call.heads, 4), static_cast<unsigned>(count));
    pair_statistics_kernel<<<grid, 128, 0, stream_of(context.stream)>>>(pairs);
    launch<kDim, false>(context, wide, longest, count);
    launch<kDim, true>(context, wide, longest, count);
  }
  return true;
}

}  // namespace

bool suits_wide_gradient(const Context& context, const GradientCall& call) {
  return context.capability == 90 && (call.head_dim == 64 || call.head_dim == 128) && !is_special(call) &&
         call.scale > 0 && call.longest < int64_t{65535} * kOwn;
}

int64_t wide_statistics_bytes(const GradientCall& call) {
  return (call.total + int64_t{call.count} * kRows) * call.heads * int64_t{sizeof(float2)};
}

bool attention_gradient_wide(const Context& context, const GradientCall& call, void* statistics) {
  auto* pairs = static_cast<float2*>(statistics);
  return call.head_dim == 64 ? launch_all<64>(context, call, pairs) : launch_all<128>(context, call, pairs);
}

}  // namespace nibble::kernels::cuda
