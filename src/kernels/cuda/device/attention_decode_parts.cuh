// What kernels of decode attention share: groups of threads, the parts of a sequence's keys and how they are joined,
// and the projections of a new token.
#pragma once

#include "kernels/cuda/device/attention.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kDecodeThreads = 128;  // of a group
inline constexpr int kDecodeWarps = kDecodeThreads / 32;
inline constexpr int kMaxDecodeParts = 16;  // of a sequence
inline constexpr int kMaxCluster = 8;       // of them that may meet in a cluster: what every GPU has that has clusters

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
  const int group = static_cast<int>(args.heads) / static_cast<int>(args.kv_heads);
  return static_cast<int>(args.kv_heads) * ((group + kHeads - 1) / kHeads);
}

/// Floats of scratch memory for the parts of `sequences` sequences; the counters are one a column of a sequence, zero
/// before and after.
inline int64_t decode_partials(const AttentionArgs& args, int64_t sequences) {
  return sequences * args.heads * kMaxDecodeParts * (args.head_dim + 2);
}

/// The projections of each sequence's token, where the kernel rotates q and k and appends k and v itself.
struct NewTokens {
  const void* k;  // of the first sequence; the others' follow
  const void* v;
  int64_t k_stride, v_stride;
  const float* cos;  // (sequences, head_dim / 2); null: nothing is rotated
  const float* sin;
};

namespace decode {

constexpr int kWide = 8;  // elements of a row that one lane holds

/// The query heads of one column.
struct Heads {
  int kv_head, first, count;
  bool is_first_column;  // of its kv head
};
template <int kHeads>
__device__ __forceinline__ Heads heads_of(const AttentionArgs& args, int column) {
  if (kHeads == 1 && args.heads == args.kv_heads) return {column, column, 1, true};
  const int group = static_cast<int>(args.heads) / static_cast<int>(args.kv_heads);
  const int columns = (group + kHeads - 1) / kHeads;
  if (columns == 1) return {column, column * group, group, true};
  const int kv_head = column / columns, at = column % columns * kHeads;
  return {kv_head, kv_head * group + at, min(kHeads, group - at), at == 0};
}

__device__ __forceinline__ void add_scaled(float4& sum, const float4& x, float scale) {
  sum.x = fmaf(x.x, scale, sum.x);
  sum.y = fmaf(x.y, scale, sum.y);
  sum.z = fmaf(x.z, scale, sum.z);
  sum.w = fmaf(x.w, scale, sum.w);
}

__device__ __forceinline__ void put_four(const AttentionArgs& args, const AttentionSequence& sequence, int64_t at,
                                         const float4& x, float scale) {
  put_result(args, sequence, at, x.x * scale);
  put_result(args, sequence, at + 1, x.y * scale);
  put_result(args, sequence, at + 2, x.z * scale);
  put_result(args, sequence, at + 3, x.w * scale);
}

/// Joins the parts of one head in their order, by one warp. `scales` and `sums` give a part's (maximum, total) and four
/// of its sums of values. Maxima are those of powers of two.
template <typename Scales, typename Sums>
__device__ __forceinline__ void join(const AttentionArgs& args, const AttentionSequence& sequence, int head, int parts,
                                     int lane, const Scales& scales, const Sums& sums_of) {
  constexpr int kAtOnce = 8;
  const int dim = static_cast<int>(args.head_dim);
  const float2 scale = lane < parts ? scales(lane) : make_float2(-INFINITY, 0);
#pragma unroll 1
  for (int first = 0; first < dim; first += 128) {
    const int d = first + lane * 4;
    float4 sums[2][kAtOnce], sum{};
    const auto load = [&](int p0, float4(&to)[kAtOnce]) {
#pragma unroll
      for (int p = 0; p < kAtOnce; ++p) to[p] = p0 + p < parts && d < dim ? sums_of(p0 + p, d) : float4{};
    };
    load(0, sums[0]);
    if (parts > kAtOnce) load(kAtOnce, sums[1]);
    const float weight = power_of_two(scale.x - warp_max(scale.x));
    const float total = warp_sum(weight * scale.y);
    const auto add = [&](int p0, const float4(&from)[kAtOnce]) {
#pragma unroll
      for (int p = 0; p < kAtOnce; ++p) {
        const float w = __shfl_sync(kFullMask, weight, p0 + p);
        add_scaled(sum, from[p], w);
      }
    };
    add(0, sums[0]);
    if (parts > kAtOnce) add(kAtOnce, sums[1]);
    if (d >= dim) continue;
    put_four(args, sequence, static_cast<int64_t>(head) * dim + d, sum, 1 / total);
  }
}

}  // namespace decode

/// Parts meet in scratch memory: the last group to come there joins them.
struct JoinInScratch {
  float* scratch;
  unsigned* counter;  // of the column
  int* is_last;       // in shared memory
  int64_t first;      // head
  int dim;

  __device__ __forceinline__ float* of_head(int head) const {
    return scratch + (first + head) * kMaxDecodeParts * (dim + 2);
  }
  __device__ __forceinline__ float* sums(int head, int part) const { return of_head(head) + part * dim; }
  __device__ __forceinline__ float2* scale(int head, int part) const {
    return reinterpret_cast<float2*>(of_head(head) + kMaxDecodeParts * dim) + part;
  }
  __device__ __forceinline__ void skip(int) const {}
  /// True in every thread of the group that joins, with what the others wrote visible to it.
  __device__ __forceinline__ bool meet(const DecodeGroup& group, int parts) const {
    group.sync();
    if (group.thread == 0) {
      unsigned before;  // of what the group wrote, too: the barrier made it this thread's
      asm volatile("atom.add.acq_rel.gpu.u32 %0, [%1], 1;\n" : "=r"(before) : "l"(counter) : "memory");
      *is_last = before == static_cast<unsigned>(parts - 1);
      if (*is_last) *counter = 0;
    }
    group.sync();
    return *is_last;
  }
  __device__ __forceinline__ void join(const AttentionArgs& args, const AttentionSequence& sequence, int first_head,
                                       int head, int parts, int lane) const {
    decode::join(
        args, sequence, first_head + head, parts, lane, [&](int part) { return __ldcg(scale(head, part)); },
        [&](int part, int d) { return __ldcg(reinterpret_cast<const float4*>(sums(head, part) + d)); });
  }
};

/// Parts meet in the shared memory of the first of a cluster's blocks, which joins them. One block a part.
template <int kDim, int kHeads>
struct JoinInCluster {
  struct Memory {
    float sums[kHeads][kMaxCluster][kDim];
    float2 scales[kHeads][kMaxCluster];
  };
  Memory* own;
  Memory* first;  // of the first block

  __device__ __forceinline__ float* sums(int head, int part) const { return first->sums[head][part]; }
  __device__ __forceinline__ float2* scale(int head, int part) const { return &first->scales[head][part]; }
  /// At the start; and later, before another block's memory is touched: all have started.
  static __device__ __forceinline__ void arrive() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;\n" ::: "memory");
#endif
  }
  static __device__ __forceinline__ void wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;\n" ::: "memory");
#endif
  }
  __device__ __forceinline__ void skip(int parts) const {
    wait();
    if (parts == 1) return;
    arrive();
    wait();
  }
  __device__ __forceinline__ bool meet(const DecodeGroup&, int) const {
    __syncwarp();
    arrive();
    wait();
    return own == first;
  }
  __device__ __forceinline__ void join(const AttentionArgs& args, const AttentionSequence& sequence, int first_head,
                                       int head, int parts, int lane) const {
    decode::join(
        args, sequence, first_head + head, parts, lane, [&](int part) { return own->scales[head][part]; },
        [&](int part, int d) { return *reinterpret_cast<const float4*>(own->sums[head][part] + d); });
  }
};

namespace decode {

/// An element that a kernel in flight may have written.
__device__ __forceinline__ float load_cached_globally(const float* from) { return __ldcg(from); }
__device__ __forceinline__ __nv_bfloat16 load_cached_globally(const __nv_bfloat16* from) { return __ldcg(from); }

/// Eight elements that a kernel in flight may have written.
template <typename X>
__device__ __forceinline__ void load_written(const X* from, float (&to)[kWide]) {
  Pack<X, kWide> pack;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(pack) / 16); ++i)
    reinterpret_cast<uint4*>(&pack)[i] = __ldcg(reinterpret_cast<const uint4*>(from) + i);
#pragma unroll
  for (int i = 0; i < kWide; ++i) to[i] = to_float(pack.at[i]);
}

/// Elements [column, column + kWide) of a head of sequence `index` after the rotation of its halves.
template <typename X>
__device__ __forceinline__ void load_rotated(const NewTokens& tokens, int64_t index, const X* head, int column, int dim,
                                             float (&to)[kWide]) {
  load_written(head + column, to);
  if (!tokens.cos) return;
  const int half = dim / 2, angle = column < half ? column : column - half;
  const bool is_first = column < half;
  float other[kWide], cosines[kWide], sines[kWide];
  load_written(head + (is_first ? column + half : column - half), other);
  load_written(tokens.cos + index * half + angle, cosines);
  load_written(tokens.sin + index * half + angle, sines);
#pragma unroll
  for (int i = 0; i < kWide; ++i) {
    const float turned = other[i] * sines[i];
    to[i] = fmaf(to[i], cosines[i], is_first ? -turned : turned);
  }
}

template <typename Body>
__device__ __forceinline__ void with_x(const AttentionArgs& args, const Body& body) {
  if (args.q_dtype == DType::bf16)
    body(__nv_bfloat16{});
  else
    body(float{});
}

}  // namespace decode
}  // namespace nibble::kernels::cuda
