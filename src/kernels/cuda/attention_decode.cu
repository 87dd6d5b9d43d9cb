// Attention of one query a sequence: blocks share a sequence's keys, and the last of them to finish joins the parts.
#include "kernels/cuda/device/async.cuh"
#include "kernels/cuda/device/attention.cuh"
#include "kernels/cuda/device/dependent.cuh"
#include "kernels/cuda/entries.h"

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
struct alignas(sizeof(T) * kWide < 16 ? 8 : 16) Slice {
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

/// The projections of each sequence's token, where the kernel rotates q and k and appends k and v itself.
struct NewTokens {
  const void* k;  // of the first sequence; the others' follow
  const void* v;
  int64_t k_stride, v_stride;
  const float* cos;  // (sequences, head_dim / 2); null: nothing is rotated
  const float* sin;
};

/// Elements [column, column + kWide) of a head after the rotation of its halves.
template <typename X>
__device__ __forceinline__ void load_rotated(const X* head, int column, int dim, const float* cos, const float* sin,
                                             float (&to)[kWide]) {
  load_pack(head + column, to);
  if (!cos) return;
  const int half = dim / 2;
  const bool is_first = column < half;
  float other[kWide], cosines[kWide], sines[kWide];
  load_pack(head + (is_first ? column + half : column - half), other);
  load_pack(cos + column % half, cosines);
  load_pack(sin + column % half, sines);
#pragma unroll
  for (int i = 0; i < kWide; ++i) {
    const float turned = other[i] * sines[i];
    to[i] = fmaf(to[i], cosines[i], is_first ? -turned : turned);
  }
}

/// A head of the query, rounded to X as if it had been stored.
template <typename X>
__device__ __forceinline__ void load_query(const NewTokens& tokens, const AttentionArgs& args, const void* query,
                                           int64_t head, int column, float (&to)[kWide]) {
  const int64_t angles = blockIdx.z * (args.head_dim / 2);
  load_rotated(static_cast<const X*>(query) + head * args.head_dim, column, static_cast<int>(args.head_dim),
               tokens.cos ? tokens.cos + angles : nullptr, tokens.sin + angles, to);
#pragma unroll
  for (float& element : to) element = to_float(from_float<X>(element));
}

template <typename X, typename T>
__device__ __forceinline__ void load_new(const NewTokens& tokens, const AttentionArgs& args, int64_t kv_head,
                                         int column, Slice<T>& key, Slice<T>& value) {
  const int64_t s = blockIdx.z, dim = args.head_dim, angles = s * (dim / 2);
  float row[kWide];
  load_rotated(static_cast<const X*>(tokens.k) + s * tokens.k_stride + kv_head * dim, column, static_cast<int>(dim),
               tokens.cos ? tokens.cos + angles : nullptr, tokens.sin + angles, row);
#pragma unroll
  for (int i = 0; i < kWide; ++i) key.values[i] = from_float<T>(row[i]);
  load_pack(static_cast<const X*>(tokens.v) + s * tokens.v_stride + kv_head * dim + column, row);
#pragma unroll
  for (int i = 0; i < kWide; ++i) value.values[i] = from_float<T>(row[i]);
}

template <typename Body>
__device__ __forceinline__ void with_x(const AttentionArgs& args, const Body& body) {
  if (args.q_dtype == DType::bf16)
    body(__nv_bfloat16{});
  else
    body(float{});
}

/// Grid: (parts, kv heads * groups of kHeads, sequences). kLanes lanes hold one row of keys or values. kNew: with
/// NewTokens; the block of the last part puts them into the cache.
template <typename T, int kLanes, int kHeads, bool kNew>
__global__ void __launch_bounds__(kThreads)
    decode_kernel(const __grid_constant__ AttentionArgs args, const __grid_constant__ Sequences sequences,
                  const __grid_constant__ NewTokens tokens, float* scratch, unsigned* counters) {
  allow_next_launch_where_possible();
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
  const int64_t stored = kNew ? min(end, position) : end;
  const auto load_tile = [&](int64_t first) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int64_t key = first + s * kRows + row;
      key_rows[s] = load_slice(k + key * dim, has_column && key < stored);
      value_rows[s] = load_slice(v + key * dim, has_column && key < stored);
      if (sizeof(T) > 1) continue;
      key_scales[s] = key < end ? scale_of<T>(sequence.k_scales, first_scale + key) : 0.0f;
      value_scales[s] = key < end ? scale_of<T>(sequence.v_scales, first_scale + key) : 0.0f;
    }
  };
  const bool has_new_keys = end > position;  // of the kernel before; all others were there long before
  if (has_new_keys && !kNew) wait_for_previous();
  load_tile(begin);
  if (!has_new_keys || kNew) wait_for_previous();
  // The new key: of which row of threads, in which of its loads.
  const bool is_new_row = kNew && has_new_keys && has_column && (position - begin) % kRows == row;
  const auto take_new = [&](int64_t first) {
    if (!is_new_row || position - first >= kTile) return;
    Slice<T> key, value;
    with_x(args, [&](auto x) { load_new<decltype(x)>(tokens, args, kv_head, column, key, value); });
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      if (first + s * kRows + row == position) {
        key_rows[s] = key;
        value_rows[s] = value;
      }
    if (blockIdx.y % groups != 0) return;
    *reinterpret_cast<Slice<T>*>(const_cast<T*>(k) + position * dim) = key;
    *reinterpret_cast<Slice<T>*>(const_cast<T*>(v) + position * dim) = value;
  };
  if constexpr (kNew) take_new(begin);
  float q[kHeads][kWide], sum[kHeads][kWide];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const bool is_there = h < heads && has_column;
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      q[h][i] = is_there && !kNew ? query_at(args, sequence, (first_head + h) * dim + column + i) : 0.0f;
      sum[h][i] = 0;
    }
    if constexpr (kNew)
      if (is_there)
        with_x(args, [&](auto x) { load_query<decltype(x)>(tokens, args, sequence.q, first_head + h, column, q[h]); });
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
    if (first + kTile < end) {
      load_tile(first + kTile);
      if constexpr (kNew) take_new(first + kTile);
    }
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

template <typename T, int kLanes, int kHeads, bool kNew>
void launch(const Context& context, const AttentionArgs& args, const Sequences& sequences, const NewTokens& tokens) {
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
  const auto kernel = decode_kernel<T, kLanes, kHeads, kNew>;
  // As the products around it: a multiprocessor changes its share of shared memory only when it is empty.
  cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  launch_dependent(context, kernel, grid, kThreads, 0, args, sequences, tokens, static_cast<float*>(scratch),
                   context.counters);
}

template <typename T, int kLanes, bool kNew = false>
void choose_heads(const Context& context, const AttentionArgs& args, const Sequences& sequences,
                  const NewTokens& tokens = {}) {
  const int64_t group = args.heads / args.kv_heads;
  if (group == 1) return launch<T, kLanes, 1, kNew>(context, args, sequences, tokens);
  if (group <= 4) return launch<T, kLanes, 4, kNew>(context, args, sequences, tokens);
  launch<T, kLanes, 8, kNew>(context, args, sequences, tokens);
}

/// Calls that the fused kernel is built for.
bool suits_new_tokens(const RotateAppendArgs& rotation, const AttentionArgs& args) {
  const int64_t dim = args.head_dim;
  if (args.kv_dtype != DType::bf16 || !args.is_causal || dim % 16 != 0 || dim > 128 || rotation.interleaved ||
      (rotation.rotary_dim != 0 && rotation.rotary_dim != dim) || rotation.x_dtype != args.q_dtype ||
      args.q_stride % 8 != 0 || rotation.k_stride % 8 != 0 || rotation.v_stride % 8 != 0 || !is_packed(rotation.k) ||
      !is_packed(rotation.v) || !is_packed(rotation.cos) || !is_packed(rotation.sin))
    return false;
  for (int64_t s = 0; s < args.sequence_count; ++s) {
    const AttentionSequence& sequence = args.sequences[s];
    if (sequence.tokens != 1 || !is_packed(sequence.q) || !is_packed(sequence.k) || !is_packed(sequence.v))
      return false;
  }
  return true;
}

}  // namespace

bool rotate_attention(const Context& context, const RotateAppendArgs& rotation, const AttentionArgs& args) {
  if (!suits_new_tokens(rotation, args)) return false;
  for (int64_t first = 0; first < args.sequence_count; first += kMaxSequences) {
    Sequences sequences;
    while (sequences.count < kMaxSequences && first + sequences.count < args.sequence_count) {
      sequences.at[sequences.count] = args.sequences[first + sequences.count];
      ++sequences.count;
    }
    const int64_t angles = first * (rotation.rotary_dim / 2);
    const bool rotates = rotation.rotary_dim > 0;
    const NewTokens tokens{advanced(rotation.k, first * rotation.k_stride, rotation.x_dtype),
                           advanced(rotation.v, first * rotation.v_stride, rotation.x_dtype),
                           rotation.k_stride,
                           rotation.v_stride,
                           rotates ? rotation.cos + angles : nullptr,
                           rotates ? rotation.sin + angles : nullptr};
    using T = __nv_bfloat16;
    args.head_dim <= 64 ? choose_heads<T, 8, true>(context, args, sequences, tokens)
                        : choose_heads<T, 16, true>(context, args, sequences, tokens);
  }
  return true;
}

void attention_decode(const Context& context, const AttentionArgs& args, const Sequences& sequences) {
  with_cache_type(args.kv_dtype, [&](auto element) {
    using T = decltype(element);
    if (args.head_dim <= 64) return choose_heads<T, 8>(context, args, sequences);
    if (args.head_dim <= 128) return choose_heads<T, 16>(context, args, sequences);
    choose_heads<T, 32>(context, args, sequences);
  });
}

}  // namespace nibble::kernels::cuda
