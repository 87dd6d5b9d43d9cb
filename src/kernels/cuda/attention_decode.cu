// Attention of one query a sequence: blocks share a sequence's keys, and the last of them to finish joins the parts.
#include "kernels/cuda/device/attention.cuh"
#include "kernels/cuda/device/dependent.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kTile = 64;      // keys whose scores are in flight together
constexpr int kWide = 8;       // elements of a row that one lane holds
constexpr int kMaxParts = 16;  // of a sequence

/// How a sequence's keys are shared out: by its own length alone, so that its bits do not depend on others.
struct Parts {
  int64_t keys_each;
  int count;
};
__host__ __device__ inline Parts parts_of(int64_t keys) {
  const int64_t each = (keys + kMaxParts * kTile - 1) / (kMaxParts * kTile) * kTile;
  return {each, static_cast<int>((keys + each - 1) / each)};
}

/// One lane's share of a row.
template <typename T>
struct Slice {
  T values[kWide];
};

template <typename T>
__device__ __forceinline__ Slice<T> load_slice(const T* from, bool is_valid) {
  Slice<T> slice;
  if constexpr (sizeof(Slice<T>) == 8)
    *reinterpret_cast<uint2*>(&slice) = is_valid ? __ldcg(reinterpret_cast<const uint2*>(from)) : make_uint2(0, 0);
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(Slice<T>) / 16); ++i)
    reinterpret_cast<uint4*>(&slice)[i] =
        is_valid ? __ldcg(reinterpret_cast<const uint4*>(from) + i) : make_uint4(0, 0, 0, 0);
  return slice;
}

/// The shared memory of a block that serves `kHeads` query heads of one kv head.
template <int kHeads>
struct Shared {
  float scores[kHeads][kTile];  // then probabilities
  float shrink[kHeads];         // what earlier sums are multiplied with
  float maximum[kHeads];
  float total[kHeads];
  bool is_last;
};

/// New maximum, probabilities and total of one head's tile, by one warp.
template <int kHeads>
__device__ __forceinline__ void soften(Shared<kHeads>& shared, int head, int lane) {
  const float a = shared.scores[head][lane], b = shared.scores[head][lane + 32];
  const float before = shared.maximum[head];
  const float highest = fmaxf(before, warp_max(fmaxf(a, b)));
  const float p = expf(a - highest), q = expf(b - highest);  // the first tile has a key, so highest is a number
  const float sum = warp_sum(p + q);
  __syncwarp();
  shared.scores[head][lane] = p;
  shared.scores[head][lane + 32] = q;
  if (lane == 0) {
    const float shrink = expf(before - highest);
    shared.shrink[head] = shrink;
    shared.maximum[head] = highest;
    shared.total[head] = fmaf(shared.total[head], shrink, sum);
  }
}

/// A part's sum of values, its maximum and its total, in scratch memory.
struct Partial {
  float* memory;
  int64_t dim;
  __device__ float* of(int64_t sequence, int64_t heads, int64_t head, int part) const {
    return memory + ((sequence * heads + head) * kMaxParts + part) * (dim + 2);
  }
};

/// Joins the parts of one head in their order. `weights` holds kMaxParts + 1 floats.
__device__ void join(const Partial& partial, const AttentionArgs& args, const AttentionSequence& sequence, int64_t head,
                     int parts, float* weights) {
  const float* first = partial.of(blockIdx.z, args.heads, head, 0);
  const int64_t step = partial.dim + 2;
  __syncthreads();
  if (threadIdx.x < 32) {
    const int p = threadIdx.x;
    const float maximum = p < parts ? __ldcg(first + p * step + partial.dim) : -INFINITY;
    const float weight = expf(maximum - warp_max(maximum));
    const float total = warp_sum(p < parts ? weight * __ldcg(first + p * step + partial.dim + 1) : 0.0f);
    if (p < parts) weights[p] = weight;
    if (p == 0) weights[kMaxParts] = total;
  }
  __syncthreads();
  for (int64_t d = threadIdx.x; d < partial.dim; d += kThreads) {
    float sum = 0;
#pragma unroll 8
    for (int p = 0; p < parts; ++p) sum = fmaf(__ldcg(first + p * step + d), weights[p], sum);
    put_result(args, sequence, head * partial.dim + d, sum / weights[kMaxParts]);
  }
}

/// Grid: (parts, kv heads * groups of kHeads, sequences). kLanes lanes hold one row of keys or values.
template <typename T, int kLanes, int kHeads>
__global__ void __launch_bounds__(kThreads)
    decode_kernel(const __grid_constant__ AttentionArgs args, const __grid_constant__ Sequences sequences,
                  float* scratch, unsigned* counters) {
  constexpr int kRows = kThreads / kLanes;  // keys in hand at once
  constexpr int kSteps = kTile / kRows;     // times a thread loads in a tile
  __shared__ Shared<kHeads> shared;
  __shared__ float sums[kWarps][kHeads][kLanes * kWide];
  const AttentionSequence& sequence = sequences.at[blockIdx.z];
  const int group = static_cast<int>(args.heads / args.kv_heads);
  const int groups = (group + kHeads - 1) / kHeads;
  const int64_t kv_head = blockIdx.y / groups, first_head = kv_head * group + blockIdx.y % groups * kHeads;
  const int heads = min(kHeads, static_cast<int>((kv_head + 1) * group - first_head));
  const int64_t dim = args.head_dim, position = past_of(sequence);  // written long before
  const KeyRange keys = keys_of(args, sequence, position);
  const Parts parts = parts_of(keys.end - keys.begin);
  const int part = blockIdx.x;
  if (part >= parts.count) return;
  const int64_t begin = keys.begin + part * parts.keys_each;
  const int64_t end = min(keys.end, begin + parts.keys_each);

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row = threadIdx.x / kLanes, column = threadIdx.x % kLanes * kWide;
  const bool has_column = column < dim;
  const T* k = static_cast<const T*>(sequence.k) + kv_head * sequence.capacity * dim + column;
  const T* v = static_cast<const T*>(sequence.v) + kv_head * sequence.capacity * dim + column;
  Slice<T> key_rows[kSteps], value_rows[kSteps];
  float key_scales[kSteps], value_scales[kSteps];  // of an i8 cache
  const int64_t first_scale = kv_head * sequence.capacity;
  const auto load_tile = [&](int64_t first) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int64_t key = first + s * kRows + row;
      key_rows[s] = load_slice(k + key * dim, has_column && key < end);
      value_rows[s] = load_slice(v + key * dim, has_column && key < end);
      if (sizeof(T) > 1) continue;
      key_scales[s] = key < end ? scale_of<T>(sequence.k_scales, first_scale + key) : 0.0f;
      value_scales[s] = key < end ? scale_of<T>(sequence.v_scales, first_scale + key) : 0.0f;
    }
  };
  const bool has_new_keys = end > position;  // of the kernel before; all others were there long before
  if (has_new_keys) wait_for_previous();
  load_tile(begin);
  if (!has_new_keys) wait_for_previous();
  float q[kHeads][kWide], sum[kHeads][kWide];
#pragma unroll
  for (int h = 0; h < kHeads; ++h)
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      q[h][i] = h < heads && has_column ? query_at(args, sequence, (first_head + h) * dim + column + i) : 0.0f;
      sum[h][i] = 0;
    }
  if (threadIdx.x < kHeads) {
    shared.maximum[threadIdx.x] = -INFINITY;
    shared.total[threadIdx.x] = 0;
  }
  for (int64_t first = begin; first < end; first += kTile) {
    __syncthreads();  // the last tile's probabilities have been read
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int64_t key = first + s * kRows + row;
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        float product = 0;
#pragma unroll
        for (int i = 0; i < kWide; ++i) product = fmaf(q[h][i], to_float(key_rows[s].values[i]), product);
#pragma unroll
        for (int offset = kLanes / 2; offset > 0; offset /= 2) product += __shfl_xor_sync(kFullMask, product, offset);
        if (sizeof(T) == 1) product *= key_scales[s];
        if (column == 0)
          shared.scores[h][s * kRows + row] =
              key < end && h < heads ? finish_score(args, product, first_head + h, position, key) : -INFINITY;
      }
    }
    __syncthreads();
    for (int h = warp; h < heads; h += kWarps) soften(shared, h, lane);
    __syncthreads();
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if (h >= heads) break;
      const float shrink = shared.shrink[h];
#pragma unroll
      for (int i = 0; i < kWide; ++i) sum[h][i] *= shrink;
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        float p = shared.scores[h][s * kRows + row];
        if (sizeof(T) == 1) p *= value_scales[s];
#pragma unroll
        for (int i = 0; i < kWide; ++i) sum[h][i] = fmaf(p, to_float(value_rows[s].values[i]), sum[h][i]);
      }
    }
    if (first + kTile < end) load_tile(first + kTile);
  }
#pragma unroll
  for (int h = 0; h < kHeads; ++h)
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
#pragma unroll
      for (int offset = kLanes; offset < 32; offset *= 2) sum[h][i] += __shfl_xor_sync(kFullMask, sum[h][i], offset);
      if (lane < kLanes) sums[warp][h][lane * kWide + i] = sum[h][i];
    }
  __syncthreads();
  const Partial partial{scratch, dim};
  for (int h = 0; h < heads; ++h) {
    float* out = partial.of(blockIdx.z, args.heads, first_head + h, part);
    for (int64_t d = threadIdx.x; d < dim; d += kThreads) {
      float value = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) value += sums[w][h][d];
      if (parts.count == 1)
        put_result(args, sequence, (first_head + h) * dim + d, value / shared.total[h]);
      else
        out[d] = value;
    }
    if (parts.count > 1 && threadIdx.x == 0) {
      out[dim] = shared.maximum[h];
      out[dim + 1] = shared.total[h];
    }
  }
  if (parts.count == 1) return;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    unsigned* counter = counters + blockIdx.z * gridDim.y + blockIdx.y;
    shared.is_last = atomicAdd(counter, 1u) == static_cast<unsigned>(parts.count - 1);
    if (shared.is_last) *counter = 0;
  }
  __syncthreads();
  if (!shared.is_last) return;
  __threadfence();
  for (int h = 0; h < heads; ++h) join(partial, args, sequence, first_head + h, parts.count, &sums[0][0][0]);
}

template <typename T, int kLanes, int kHeads>
void launch(const Context& context, const AttentionArgs& args, const Sequences& sequences) {
  int64_t keys = 1;
  for (int s = 0; s < sequences.count; ++s) {
    const AttentionSequence& sequence = sequences.at[s];
    const int64_t seen = args.is_causal ? sequence.past + 1 : sequence.keys;
    const int64_t in_window = args.window > 0 && seen > args.window ? args.window : seen;
    keys = in_window > keys ? in_window : keys;
  }
  // More keys can make fewer parts, when each gets longer: a sequence shorter than the longest may have up to
  // kMaxParts.
  const int64_t tiles = (keys + kTile - 1) / kTile;
  const auto parts = static_cast<unsigned>(tiles < kMaxParts ? tiles : kMaxParts);
  const int64_t group = args.heads / args.kv_heads;
  const dim3 grid(parts, static_cast<unsigned>(args.kv_heads * ((group + kHeads - 1) / kHeads)),
                  static_cast<unsigned>(sequences.count));
  void* scratch = parts > 1 ? context.scratch->reserve(sequences.count * args.heads * kMaxParts * (args.head_dim + 2) *
                                                       static_cast<int64_t>(sizeof(float)))
                            : nullptr;
  launch_dependent(context, decode_kernel<T, kLanes, kHeads>, grid, kThreads, 0, args, sequences,
                   static_cast<float*>(scratch), context.counters);
}

template <typename T, int kLanes>
void choose_heads(const Context& context, const AttentionArgs& args, const Sequences& sequences) {
  const int64_t group = args.heads / args.kv_heads;
  if (group == 1) return launch<T, kLanes, 1>(context, args, sequences);
  if (group <= 4) return launch<T, kLanes, 4>(context, args, sequences);
  launch<T, kLanes, 8>(context, args, sequences);
}

}  // namespace

void attention_decode(const Context& context, const AttentionArgs& args, const Sequences& sequences) {
  with_cache_type(args.kv_dtype, [&](auto element) {
    using T = decltype(element);
    if (args.head_dim <= 64) return choose_heads<T, 8>(context, args, sequences);
    if (args.head_dim <= 128) return choose_heads<T, 16>(context, args, sequences);
    choose_heads<T, 32>(context, args, sequences);
  });
}

}  // namespace nibble::kernels::cuda
