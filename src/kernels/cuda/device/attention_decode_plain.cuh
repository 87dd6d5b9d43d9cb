// Attention of one query a sequence over a part of its keys without tensor cores: for caches of any type, on any GPU.
#pragma once

#include "kernels/cuda/device/attention_decode_parts.cuh"

namespace nibble::kernels::cuda {

namespace plain_decode {

constexpr int kTile = 64;  // keys whose scores are in flight together

}  // namespace plain_decode

/// The shared memory of a group that serves `kHeads` query heads of one kv head.
template <int kDim, int kHeads>
struct PlainDecodeShared {
  float scores[kHeads][plain_decode::kTile];  // then probabilities
  float shrink[kHeads];                       // what earlier sums are multiplied with
  float maximum[kHeads];
  float total[kHeads];
  int is_last;
  float sums[kDecodeWarps][kHeads][kDim];
};

namespace plain_decode {

using decode::kWide;

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
template <int kDim, int kHeads>
__device__ __forceinline__ void soften(PlainDecodeShared<kDim, kHeads>& shared, int head, int lane) {
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

}  // namespace plain_decode

/// As attend_query: one group's item.
template <typename T, int kDim, int kHeads, typename Ready>
__device__ __forceinline__ void attend_query_plain(const DecodeGroup& group, const DecodeItem& item,
                                                   const AttentionArgs& args, const AttentionSequence& sequence,
                                                   float* scratch, unsigned* counters,
                                                   PlainDecodeShared<kDim, kHeads>& shared, const Ready& ready) {
  using namespace plain_decode;
  constexpr int kLanes = kDim / kWide;            // that hold one row of keys or values
  constexpr int kRows = kDecodeThreads / kLanes;  // keys in hand at once
  constexpr int kSteps = kTile / kRows;           // times a thread loads in a tile
  auto& sums = shared.sums;
  const decode::Heads column_heads = decode::heads_of<kHeads>(args, item.column);
  const int64_t kv_head = column_heads.kv_head, first_head = column_heads.first;
  const int heads = column_heads.count;
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
  if (has_new_keys) ready();
  load_tile(begin);
  if (!has_new_keys) ready();
  float q[kHeads][kWide], sum[kHeads][kWide];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const bool is_there = h < heads && has_column;
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      q[h][i] = is_there ? query_at(args, sequence, (first_head + h) * dim + column + i) : 0.0f;
      sum[h][i] = 0;
    }
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
    for (int h = warp; h < heads; h += kDecodeWarps) soften(shared, h, lane);
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
  group.sync();
  const JoinInScratch meeting{scratch, counters + item.sequence * decode_columns<kHeads>(args) + item.column,
                              &shared.is_last, item.sequence * args.heads + first_head, static_cast<int>(dim)};
  for (int h = 0; h < heads; ++h) {
    for (int64_t d = group.thread; d < dim; d += kDecodeThreads) {
      float value = 0;
#pragma unroll
      for (int w = 0; w < kDecodeWarps; ++w) value += sums[w][h][d];
      if (parts.count == 1)
        put_result(args, sequence, (first_head + h) * dim + d, value / shared.total[h]);
      else
        meeting.sums(h, part)[d] = value;
    }
    if (parts.count > 1 && group.thread == 0)
      *meeting.scale(h, part) = make_float2(shared.maximum[h] * 1.44269504f, shared.total[h]);
  }
  if (parts.count == 1 || !meeting.meet(group, parts.count)) return;
  for (int h = warp; h < heads; h += kDecodeWarps)
    meeting.join(args, sequence, static_cast<int>(first_head), h, parts.count, lane);
}

}  // namespace nibble::kernels::cuda
