// Attention of one query a sequence over a part of its keys, by a group of 128 threads; the last group to finish joins
// the parts. attention_decode's kernel and the program of a whole step call it.
#pragma once

#include "kernels/cuda/device/attention.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kDecodeThreads = 128;  // of a group
inline constexpr int kMaxDecodeParts = 16;  // of a sequence

/// 128 threads of a block, whole warps, that meet at a barrier of their own.
struct DecodeGroup {
  int thread;   // of the group
  int barrier;  // 0 to 15
  __device__ __forceinline__ void sync() const {
    asm volatile("bar.sync %0, %1;\n" ::"r"(barrier), "n"(kDecodeThreads) : "memory");
  }
};

/// What a group works on: part of the keys of one sequence, for the query heads of one column.
struct DecodeItem {
  int part, column, sequence;  // part < kMaxDecodeParts: parts past a sequence's last are empty
};

/// Columns of `kHeads` query heads that share a kv head.
template <int kHeads>
__host__ __device__ inline int decode_columns(const AttentionArgs& args) {
  const auto group = static_cast<int>(args.heads / args.kv_heads);
  return static_cast<int>(args.kv_heads) * ((group + kHeads - 1) / kHeads);
}

/// Floats of scratch memory for the parts of `sequences` sequences; the counters are one a column of a sequence, zero
/// before and after.
inline int64_t decode_partials(const AttentionArgs& args, int64_t sequences) {
  return sequences * args.heads * kMaxDecodeParts * (args.head_dim + 2);
}

namespace decode {

constexpr int kWarps = kDecodeThreads / 32;
constexpr int kTile = 64;  // keys whose scores are in flight together
constexpr int kWide = 8;   // elements of a row that one lane holds

}  // namespace decode

/// The shared memory of a group that serves `kHeads` query heads of one kv head.
template <typename T, int kDim, int kHeads>
struct alignas(128) DecodeShared {
  float scores[kHeads][decode::kTile];  // then probabilities
  float shrink[kHeads];                 // what earlier sums are multiplied with
  float maximum[kHeads];
  float total[kHeads];
  bool is_last;
  float sums[decode::kWarps][kHeads][kDim];
};

/// The projections of each sequence's token, where the kernel rotates q and k and appends k and v itself.
struct NewTokens {
  const void* k;  // of the first sequence; the others' follow
  const void* v;
  int64_t k_stride, v_stride;
  const float* cos;  // (sequences, head_dim / 2); null: nothing is rotated
  const float* sin;
};

namespace decode {

/// How a sequence's keys are shared out: by its own length alone, so that its bits do not depend on others.
struct Parts {
  int64_t keys_each;
  int count;
};
__host__ __device__ inline Parts parts_of(int64_t keys) {
  const int64_t each = (keys + kMaxDecodeParts * kTile - 1) / (kMaxDecodeParts * kTile) * kTile;
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

/// New maximum, probabilities and total of one head's tile, by one warp.
template <typename T, int kDim, int kHeads>
__device__ __forceinline__ void soften(DecodeShared<T, kDim, kHeads>& shared, int head, int lane) {
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
    return memory + ((sequence * heads + head) * kMaxDecodeParts + part) * (dim + 2);
  }
};

/// Joins the parts of one head in their order. `weights` holds kMaxDecodeParts + 1 floats.
__device__ inline void join(const DecodeGroup& group, const Partial& partial, const AttentionArgs& args,
                            const AttentionSequence& sequence, int64_t index, int64_t head, int parts, float* weights) {
  const float* first = partial.of(index, args.heads, head, 0);
  const int64_t step = partial.dim + 2;
  group.sync();
  if (group.thread < 32) {
    const int p = group.thread;
    const float maximum = p < parts ? __ldcg(first + p * step + partial.dim) : -INFINITY;
    const float weight = expf(maximum - warp_max(maximum));
    const float total = warp_sum(p < parts ? weight * __ldcg(first + p * step + partial.dim + 1) : 0.0f);
    if (p < parts) weights[p] = weight;
    if (p == 0) weights[kMaxDecodeParts] = total;
  }
  group.sync();
  for (int64_t d = group.thread; d < partial.dim; d += kDecodeThreads) {
    float sum = 0;
#pragma unroll 8
    for (int p = 0; p < parts; ++p) sum = fmaf(__ldcg(first + p * step + d), weights[p], sum);
    put_result(args, sequence, head * partial.dim + d, sum / weights[kMaxDecodeParts]);
  }
}

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
__device__ __forceinline__ void load_query(const NewTokens& tokens, const AttentionArgs& args, int64_t index,
                                           const void* query, int64_t head, int column, float (&to)[kWide]) {
  const int64_t angles = index * (args.head_dim / 2);
  load_rotated(static_cast<const X*>(query) + head * args.head_dim, column, static_cast<int>(args.head_dim),
               tokens.cos ? tokens.cos + angles : nullptr, tokens.sin + angles, to);
#pragma unroll
  for (float& element : to) element = to_float(from_float<X>(element));
}

template <typename X, typename T>
__device__ __forceinline__ void load_new(const NewTokens& tokens, const AttentionArgs& args, int64_t index,
                                         int64_t kv_head, int column, Slice<T>& key, Slice<T>& value) {
  const int64_t dim = args.head_dim, angles = index * (dim / 2);
  float row[kWide];
  load_rotated(static_cast<const X*>(tokens.k) + index * tokens.k_stride + kv_head * dim, column, static_cast<int>(dim),
               tokens.cos ? tokens.cos + angles : nullptr, tokens.sin + angles, row);
#pragma unroll
  for (int i = 0; i < kWide; ++i) key.values[i] = from_float<T>(row[i]);
  load_pack(static_cast<const X*>(tokens.v) + index * tokens.v_stride + kv_head * dim + column, row);
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

}  // namespace decode

/// One group's item: attention of a sequence's one query over a part of its keys. The last group of a column and
/// sequence to finish joins the parts. kDim: 64, 128 or 256, at least head_dim. kNew: with NewTokens; the group of the
/// last part puts them into the cache. `ready` is called by every thread once, unless the part is empty: before it only
/// what was there long before is read (keys of the past, lengths), after it the projections, too. The bits depend on
/// the sequence and its length alone. On return the group may still read `shared`: sync before using it for another.
template <typename T, int kDim, int kHeads, bool kNew, typename Ready>
__device__ __forceinline__ void attend_query(const DecodeGroup& group, const DecodeItem& item,
                                             const AttentionArgs& args, const AttentionSequence& sequence,
                                             const NewTokens& tokens, float* partials, unsigned* counters,
                                             DecodeShared<T, kDim, kHeads>& shared, const Ready& ready) {
  using namespace decode;
  constexpr int kLanes = kDim / kWide;            // that hold one row of keys or values
  constexpr int kRows = kDecodeThreads / kLanes;  // keys in hand at once
  constexpr int kSteps = kTile / kRows;           // times a thread loads in a tile
  auto& sums = shared.sums;
  const int group_heads = static_cast<int>(args.heads / args.kv_heads);
  const int groups = (group_heads + kHeads - 1) / kHeads;
  const int64_t kv_head = item.column / groups, first_head = kv_head * group_heads + item.column % groups * kHeads;
  const int heads = min(kHeads, static_cast<int>((kv_head + 1) * group_heads - first_head));
  const int64_t dim = args.head_dim, position = past_of(sequence);  // written long before
  const KeyRange keys = keys_of(args, sequence, position);
  const Parts parts = parts_of(keys.end - keys.begin);
  const int part = item.part;
  if (part >= parts.count) return;
  const int64_t begin = keys.begin + part * parts.keys_each;
  const int64_t end = min(keys.end, begin + parts.keys_each);

  const int lane = group.thread % 32, warp = group.thread / 32;
  const int row = group.thread / kLanes, column = group.thread % kLanes * kWide;
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
  if (has_new_keys && !kNew) ready();
  load_tile(begin);
  if (!has_new_keys || kNew) ready();
  // The new key: of which row of threads, in which of its loads.
  const bool is_new_row = kNew && has_new_keys && has_column && (position - begin) % kRows == row;
  const auto take_new = [&](int64_t first) {
    if (!is_new_row || position - first >= kTile) return;
    Slice<T> key, value;
    with_x(args, [&](auto x) { load_new<decltype(x)>(tokens, args, item.sequence, kv_head, column, key, value); });
#pragma unroll
    for (int s = 0; s < kSteps; ++s)
      if (first + s * kRows + row == position) {
        key_rows[s] = key;
        value_rows[s] = value;
      }
    if (item.column % groups != 0) return;
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
        with_x(args, [&](auto x) {
          load_query<decltype(x)>(tokens, args, item.sequence, sequence.q, first_head + h, column, q[h]);
        });
  }
  if (group.thread < kHeads) {
    shared.maximum[group.thread] = -INFINITY;
    shared.total[group.thread] = 0;
  }
  for (int64_t first = begin; first < end; first += kTile) {
    group.sync();  // the last tile's probabilities have been read
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
    group.sync();
    for (int h = warp; h < heads; h += kWarps) soften(shared, h, lane);
    group.sync();
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
  group.sync();
  const Partial partial{partials, dim};
  for (int h = 0; h < heads; ++h) {
    float* out = partial.of(item.sequence, args.heads, first_head + h, part);
    for (int64_t d = group.thread; d < dim; d += kDecodeThreads) {
      float value = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) value += sums[w][h][d];
      if (parts.count == 1)
        put_result(args, sequence, (first_head + h) * dim + d, value / shared.total[h]);
      else
        out[d] = value;
    }
    if (parts.count > 1 && group.thread == 0) {
      out[dim] = shared.maximum[h];
      out[dim + 1] = shared.total[h];
    }
  }
  if (parts.count == 1) return;
  __threadfence();
  group.sync();
  if (group.thread == 0) {
    unsigned* counter = counters + item.sequence * decode_columns<kHeads>(args) + item.column;
    shared.is_last = atomicAdd(counter, 1u) == static_cast<unsigned>(parts.count - 1);
    if (shared.is_last) *counter = 0;
  }
  group.sync();
  if (!shared.is_last) return;
  __threadfence();
  for (int h = 0; h < heads; ++h)
    join(group, partial, args, sequence, item.sequence, first_head + h, parts.count, &sums[0][0][0]);
}

}  // namespace nibble::kernels::cuda
