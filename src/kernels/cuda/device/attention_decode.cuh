// Attention of one query a sequence over a part of its keys, by a group of 128 threads on tensor cores; the last group
// to finish joins the parts. attention_decode's kernel calls it, and so can kernels that do more than it.
#pragma once

#include "kernels/cuda/device/attention_decode_parts.cuh"
#include "kernels/cuda/device/mma.cuh"

namespace nibble::kernels::cuda {

namespace decode {

constexpr int kPartKeys = 128;  // of a part, until there are kMaxDecodeParts
constexpr int kTileKeys = 16;   // of a warp at once: the rows of a tensor core's operand

/// Tiles of keys or values that a warp has under way.
template <typename T, int kDim>
constexpr int slots_for() {
  return 512 / (kDim * static_cast<int>(sizeof(T))) < 2 ? 2 : 512 / (kDim * static_cast<int>(sizeof(T)));
}

/// Parts of a sequence by its own length alone, so that its bits do not depend on others.
__host__ __device__ inline int parts_of(int keys) {
  const int parts = (keys + kPartKeys / 2) / kPartKeys;
  return parts < 1 ? 1 : parts > kMaxDecodeParts ? kMaxDecodeParts : parts;
}

}  // namespace decode

/// The shared memory of a group that serves `kHeads` query heads of one kv head. T: bf16 or int8_t.
template <typename T, int kDim, int kHeads, int kSlots = decode::slots_for<T, kDim>()>
struct alignas(256) DecodeShared {
  unsigned char ring[kDecodeWarps][kSlots][decode::kTileKeys * kDim * sizeof(T)];  // at last each warp's sums
  __nv_bfloat16 q[2][kHeads][kDim + 8];  // queries, and what rounding to bf16 took from them
  alignas(16) T fresh[2][kDim];          // the new token's key and value
  float fresh_scales[2];
  float maximum[kDecodeWarps][kHeads];
  float total[kDecodeWarps][kHeads];
  int is_last;
};

namespace decode {

__device__ __forceinline__ uint32_t transposed(uint32_t matrix) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(result) : "r"(matrix));
  return result;
}

/// Bytes 0 and 2 of four codes as bf16: 128 + the low seven bits, less 128 or, if negative, 256.
__device__ __forceinline__ uint32_t widened(uint32_t codes) {
  uint32_t low, high;  // (codes & mask) | 128 in bf16, in one instruction each
  asm("lop3.b32 %0, %1, 0x007f007f, 0x43004300, 0xea;\n" : "=r"(low) : "r"(codes));
  asm("lop3.b32 %0, %1, 0x00800080, 0x43004300, 0xea;\n" : "=r"(high) : "r"(codes));
  const __nv_bfloat162 difference =
      __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&low), *reinterpret_cast<const __nv_bfloat162*>(&high));
  return *reinterpret_cast<const uint32_t*>(&difference);
}

/// A tile in shared memory: rows of keys, whose 16-byte chunks are swizzled so that eight rows lie in different banks.
template <typename T, int kDim>
struct Tile {
  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(T));
  static constexpr int kChunks = kRowBytes / 16;
  static constexpr int kBytes = kTileKeys * kRowBytes;
  uint32_t address;  // a multiple of 256: chunks are told apart by bits that may be flipped

  __device__ __forceinline__ uint32_t at(int row, int chunk) const {
    return address + row * kRowBytes + ((chunk ^ swizzle_of(row)) * 16);
  }
  /// Chunk first_chunk + 2 * pair of the row, whose first_chunk is at `first`: 0 or 1.
  static __device__ __forceinline__ uint32_t pair_at(uint32_t first, int pair) { return first ^ (pair * 32); }

  /// Starts copying the first `rows` rows from `from`; what is outside becomes zeros.
  __device__ __forceinline__ void fill(const T* from, int rows, int dim, int lane) const {
    constexpr int kStep = 32 / kChunks;
    const int chunk = lane % kChunks, first = lane / kChunks, column = chunk * (16 / static_cast<int>(sizeof(T)));
    from += first * dim + column;
    if (column >= dim) rows = 0;
#pragma unroll
    for (int i = 0; i < kTileKeys / kStep; ++i)
      copy_async_16(at(first + i * kStep, chunk), from + i * kStep * dim, first + i * kStep < rows ? 16 : 0);
  }

  __device__ __forceinline__ void put_row(int row, const T* from, int lane) const {
    if (lane >= kChunks) return;
    const uint4 chunk = reinterpret_cast<const uint4*>(from)[lane];
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};\n" ::"r"(at(row, lane)), "r"(chunk.x), "r"(chunk.y),
                 "r"(chunk.z), "r"(chunk.w)
                 : "memory");
  }

 private:
  static __device__ __forceinline__ int swizzle_of(int row) { return kRowBytes >= 128 ? row & 7 : row >> 1 & 3; }
};

/// Where a query's element lies in shared memory: pairs of codes are widened to bytes 0 and 2, 1 and 3.
template <typename T>
__device__ __forceinline__ int place_of(int d) {
  return sizeof(T) == 1 ? (d & ~3) | (d & 1) << 1 | (d & 2) >> 1 : d;
}

/// Products of the tile's keys and the queries: of keys lane / 4 and + 8 with heads lane % 4 * 2 and + 1.
template <int kPieces, typename T, int kDim, int kHeads>
__device__ __forceinline__ void multiply_keys(const Tile<T, kDim>& tile, const __nv_bfloat16 (&q)[2][kHeads][kDim + 8],
                                              int lane, float (&product)[4]) {
  constexpr int kLoads = Tile<T, kDim>::kChunks / 2, kAtOnce = kLoads < 8 ? kLoads : 8;
  const int head = lane / 4;
  const auto query = [&](int piece, int column) {
    return head < kHeads ? *reinterpret_cast<const uint32_t*>(&q[piece][head][column]) : 0u;
  };
  float sums[2][4] = {};
  uint32_t row = tile.at(lane % 16, lane / 16);
  asm volatile("" : "+r"(row));  // addresses are made anew for each tile: registers are scarce
#pragma unroll
  for (int first = 0; first < kLoads; first += kAtOnce) {
    uint32_t a[kAtOnce][4];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) load_matrices(a[i], Tile<T, kDim>::pair_at(row, first + i));
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        if constexpr (sizeof(T) == 1) {
          const uint32_t low[4] = {widened(a[i][0]), widened(a[i][1]), widened(a[i][0] >> 8), widened(a[i][1] >> 8)};
          const uint32_t high[4] = {widened(a[i][2]), widened(a[i][3]), widened(a[i][2] >> 8), widened(a[i][3] >> 8)};
          const int column = 32 * (first + i) + lane % 4 * 4;
          multiply_bf16(sums[0], low, query(piece, column), query(piece, column + 2));
          multiply_bf16(sums[1], high, query(piece, column + 16), query(piece, column + 18));
        } else {
          const int column = 16 * (first + i) + lane % 4 * 2;
          multiply_bf16(sums[i % 2], a[i], query(piece, column), query(piece, column + 8));
        }
      }
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) product[e] = sums[0][e] + sums[1][e];
}

/// sums += the tile's values times probabilities, given as those of two addends. Element e of sums[j] is that of
/// column_of(j, e, lane) and head lane % 4 * 2 + e % 2.
template <typename T, int kDim>
__device__ __forceinline__ void multiply_values(const Tile<T, kDim>& tile, const uint32_t (&p)[2][2], int lane,
                                                float (&sums)[kDim / 16][4]) {
  constexpr int kLoads = Tile<T, kDim>::kChunks / 2, kAtOnce = kLoads < 4 ? kLoads : 4;
  uint32_t row = tile.at(lane % 8 + lane / 16 * 8, lane / 8 % 2);
  asm volatile("" : "+r"(row));
#pragma unroll
  for (int first = 0; first < kLoads; first += kAtOnce) {
    uint32_t a[kAtOnce][4];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) load_matrices_transposed(a[i], Tile<T, kDim>::pair_at(row, first + i));
    if constexpr (sizeof(T) == 1) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const uint32_t low[4] = {widened(a[i][0]), widened(a[i][0] >> 8), widened(a[i][2]), widened(a[i][2] >> 8)};
        const uint32_t high[4] = {widened(a[i][1]), widened(a[i][1] >> 8), widened(a[i][3]), widened(a[i][3] >> 8)};
#pragma unroll
        for (int addend = 0; addend < 2; ++addend) {
          multiply_bf16(sums[2 * (first + i)], low, p[addend][0], p[addend][1]);
          multiply_bf16(sums[2 * (first + i) + 1], high, p[addend][0], p[addend][1]);
        }
      }
    } else {
#pragma unroll
      for (int addend = 0; addend < 2; ++addend)
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) multiply_bf16(sums[first + i], a[i], p[addend][0], p[addend][1]);
    }
  }
}

template <typename T>
__device__ __forceinline__ int column_of(int j, int e, int lane) {
  return sizeof(T) == 1 ? 16 * j + lane / 4 * 2 + e / 2 : 16 * j + lane / 4 + e / 2 * 8;
}

/// One warp's softmax over the tiles it has seen: of heads lane % 4 * 2 and + 1.
template <int kDim, int kHeads>
struct Softmax {
  static constexpr int kOwn = kHeads == 1 ? 1 : 2;
  float maximum[2] = {-INFINITY, -INFINITY};  // of scores that are powers of two
  float total[2] = {};                        // of this lane's keys
  float sums[kDim / 16][4] = {};

  /// Scores become probabilities; what was summed before shrinks to the new maximum.
  __device__ __forceinline__ void take(float (&scores)[4]) {
    float shrink[2] = {1, 1};
#pragma unroll
    for (int h = 0; h < kOwn; ++h) {
      float highest = fmaxf(scores[h], scores[h + 2]);  // the tile has a key, so it is a number
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2)
        highest = fmaxf(highest, __shfl_xor_sync(kFullMask, highest, offset));
      highest = fmaxf(maximum[h], highest);
      shrink[h] = power_of_two(maximum[h] - highest);
      maximum[h] = highest;
      scores[h] = power_of_two(scores[h] - highest);
      scores[h + 2] = power_of_two(scores[h + 2] - highest);
      total[h] = fmaf(total[h], shrink[h], scores[h] + scores[h + 2]);
    }
    if (!__any_sync(kFullMask, shrink[0] != 1 || shrink[1] != 1)) return;
#pragma unroll
    for (auto& sum : sums)
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[e] *= shrink[e % 2];
  }
};

/// Probabilities as an operand: rounded to bf16, and what that took from them.
__device__ __forceinline__ void split(const float (&p)[4], uint32_t (&operand)[2][2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float low = p[2 * half], high = p[2 * half + 1];
    const uint32_t rounded = pack_bf16(low, high);
    operand[0][half] = transposed(rounded);
    operand[1][half] =
        transposed(pack_bf16(low - __uint_as_float(rounded << 16), high - __uint_as_float(rounded & 0xffff0000u)));
  }
}

/// The new token's key (warp 3) or value (warp 2): into shared memory, and into the cache if `is_stored`. As
/// rotate_append, bit by bit.
template <typename T, typename Shared>
__device__ __forceinline__ void put_fresh(const AttentionArgs& args, const AttentionSequence& sequence,
                                          const NewTokens& tokens, int64_t index, int kv_head, int position,
                                          bool is_stored, bool is_key, int lane, Shared& shared) {
  const int dim = static_cast<int>(args.head_dim), column = lane * kWide;
  float row[kWide] = {};
  if (column < dim)
    with_x(args, [&](auto x) {
      using X = decltype(x);
      const int64_t head = static_cast<int64_t>(kv_head) * dim;
      if (is_key)
        load_rotated(tokens, index, static_cast<const X*>(tokens.k) + index * tokens.k_stride + head, column, dim, row);
      else
        load_written(static_cast<const X*>(tokens.v) + index * tokens.v_stride + head + column, row);
    });
  const int64_t key = kv_head * sequence.capacity + position;
  Pack<T, kWide> elements;
  if constexpr (sizeof(T) == 1) {
    float absmax = 0;
#pragma unroll
    for (const float element : row) absmax = fmaxf(absmax, fabsf(element));
    absmax = warp_max(absmax);
    if (absmax < 1.17549435e-38f) absmax = 0;
    const float unit = absmax > 0 ? 127.0f / absmax : 0.0f, scale = absmax * (1.0f / 127.0f);
#pragma unroll
    for (int i = 0; i < kWide; ++i) {
      const float code = rintf(row[i] * unit);
      elements.at[i] = static_cast<int8_t>(fminf(fmaxf(isnan(code) ? 0.0f : code, -127.0f), 127.0f));
    }
    if (lane == 0) {
      shared.fresh_scales[!is_key] = scale;
      if (is_stored) (is_key ? sequence.k_scales : sequence.v_scales)[key] = scale;
    }
  } else {
#pragma unroll
    for (int i = 0; i < kWide; ++i) elements.at[i] = from_float<T>(row[i]);
  }
  constexpr int kElements = sizeof(shared.fresh[0]) / sizeof(T);
  if (column < kElements) *reinterpret_cast<Pack<T, kWide>*>(&shared.fresh[!is_key][column]) = elements;
  if (is_stored && column < dim)
    *reinterpret_cast<Pack<T, kWide>*>(static_cast<T*>(const_cast<void*>(is_key ? sequence.k : sequence.v)) +
                                       key * dim + column) = elements;
}

/// The queries into shared memory, by all threads of the group, each of which takes elements d and d + half.
template <typename T, int kDim, int kHeads, bool kNew>
__device__ __forceinline__ void put_queries(const DecodeGroup& group, const AttentionArgs& args,
                                            const AttentionSequence& sequence, const NewTokens& tokens, int64_t index,
                                            const Heads& heads, __nv_bfloat16 (&q)[2][kHeads][kDim + 8]) {
  constexpr int kCount = (kHeads * kDim / 2 + kDecodeThreads - 1) / kDecodeThreads;
  const int dim = static_cast<int>(args.head_dim), half = dim / 2;
  const int d = group.thread % (kDim / 2), first_head = group.thread / (kDim / 2);
  constexpr int kStep = kDecodeThreads / (kDim / 2);  // heads
  if (first_head >= kHeads) return;
  const bool is_there = d < half, is_turned = kNew && tokens.cos && is_there;
  const float cos = is_turned ? __ldcg(tokens.cos + index * half + d) : 0;
  const float sin = is_turned ? __ldcg(tokens.sin + index * half + d) : 0;
  // Threads past the half write the zeros past the head.
  const int to[2] = {place_of<T>(is_there ? d : 2 * d), place_of<T>(is_there ? d + half : 2 * d + 1)};
  with_x(args, [&](auto x) {
    using X = decltype(x);
    const X* from = static_cast<const X*>(sequence.q) + heads.first * dim + d;
    X rows[kCount][2];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int head = first_head + i * kStep;
      const bool is_valid = is_there && head < heads.count;
#pragma unroll
      for (int e = 0; e < 2; ++e)
        rows[i][e] = is_valid ? load_cached_globally(from + head * dim + e * half) : from_float<X>(0.0f);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      float pair[2] = {to_float(rows[i][0]), to_float(rows[i][1])};
      if (is_turned) {
        const float turned = fmaf(pair[0], cos, -(pair[1] * sin));
        pair[1] = to_float(from_float<X>(fmaf(pair[1], cos, pair[0] * sin)));  // rounded as if it had been stored
        pair[0] = to_float(from_float<X>(turned));
      }
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const __nv_bfloat16 rounded = __float2bfloat16_rn(pair[e]);
        q[0][first_head + i * kStep][to[e]] = rounded;
        if constexpr (sizeof(X) == 4)
          q[1][first_head + i * kStep][to[e]] = __float2bfloat16_rn(pair[e] - __bfloat162float(rounded));
      }
    }
  });
}

}  // namespace decode

/// As attend_query, with the place where parts meet.
template <typename T, int kDim, int kHeads, bool kNew, int kSlots, typename Meeting, typename Ready>
__device__ __forceinline__ void attend_part(const DecodeGroup& group, const DecodeItem& item, const AttentionArgs& args,
                                            const AttentionSequence& sequence, const NewTokens& tokens,
                                            const Meeting& meeting, DecodeShared<T, kDim, kHeads, kSlots>& shared,
                                            const Ready& ready) {
  using namespace decode;
  using KeyTile = Tile<T, kDim>;
  static_assert(kSlots * KeyTile::kBytes >= kHeads * kDim * 4, "a warp's sums take the place of its ring");
  const Heads heads = heads_of<kHeads>(args, item.column);
  const int dim = static_cast<int>(args.head_dim), lane = group.thread % 32, warp = group.thread / 32;
  const int position = static_cast<int>(past_of(sequence));  // written long before
  const KeyRange range = keys_of(args, sequence, position);
  const int begin = static_cast<int>(range.begin), end = static_cast<int>(range.end);
  const int parts = parts_of(end - begin), tiles = (end - begin + kTileKeys - 1) / kTileKeys;
  if (item.part >= parts) return meeting.skip(parts);
  const float tiles_each = __fdividef(static_cast<float>(tiles), static_cast<float>(parts));
  const auto tile_of = [&](int part) { return part == parts ? tiles : static_cast<int>(part * tiles_each); };
  const int first_tile = tile_of(item.part), last_tile = tile_of(item.part + 1);
  const int steps = max(0, (last_tile - first_tile - warp + kDecodeWarps - 1) / kDecodeWarps);
  const int first_key = begin + (first_tile + warp) * kTileKeys, stride = kDecodeWarps * kTileKeys;
  const bool has_new_key = min(end, begin + last_tile * kTileKeys) > position;
  const int stored = kNew ? min(end, position) : end;

  const int64_t first_row = static_cast<int64_t>(heads.kv_head) * sequence.capacity;
  const T* cache[2] = {static_cast<const T*>(sequence.k) + first_row * dim,
                       static_cast<const T*>(sequence.v) + first_row * dim};
  const uint32_t ring = shared_address(shared.ring[warp]);
  const auto tile_at = [&](int u) { return KeyTile{ring + u % kSlots * KeyTile::kBytes}; };
  const auto fetch = [&](int u) {  // keys of tile u / 2 or, if odd, its values
    if (u < 2 * steps) {
      const int key = first_key + u / 2 * stride;
      tile_at(u).fill(cache[u % 2] + static_cast<int64_t>(key) * dim, stored - key, dim, lane);
    }
    commit_copies();
  };
  float key_scales[2], value_scales[2];
  const auto fetch_scales = [&](int key) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int at = key + lane / 4 + i * 8;
      key_scales[i] = at < stored ? scale_of<T>(sequence.k_scales, first_row + at) : 0.0f;
      value_scales[i] = at < stored ? scale_of<T>(sequence.v_scales, first_row + at) : 0.0f;
    }
  };
  if (has_new_key && !kNew) ready();  // the newest is of the kernel before; all others were there long before
#pragma unroll
  for (int u = 0; u < kSlots; ++u) fetch(u);
  if (sizeof(T) == 1) fetch_scales(first_key);
  if (!has_new_key || kNew) ready();
  if (kNew && has_new_key && warp >= 2)
    put_fresh<T>(args, sequence, tokens, item.sequence, heads.kv_head, position, heads.is_first_column, warp == 3, lane,
                 shared);
  put_queries<T, kDim, kHeads, kNew>(group, args, sequence, tokens, item.sequence, heads, shared.q);
  group.sync();

  Softmax<kDim, kHeads> softmax;
  const bool is_narrow = args.q_dtype == DType::bf16;
  const bool is_plain = !(args.softcap > 0) && !args.alibi_slopes && !args.relative_bias;
  for (int step = 0; step < steps; ++step) {
    const int key = first_key + step * stride, new_row = kNew ? position - key : kTileKeys;
    const bool has_new_row = new_row >= 0 && new_row < kTileKeys;
    const auto await = [&](int u) {
      wait_copies<kSlots - 1>();
      __syncwarp();
      if (has_new_row) {
        tile_at(u).put_row(new_row, shared.fresh[u % 2], lane);
        __syncwarp();
      }
      return tile_at(u);
    };
    float p[4];
    const KeyTile keys = await(2 * step);
    is_narrow ? multiply_keys<1, T, kDim, kHeads>(keys, shared.q, lane, p)
              : multiply_keys<2, T, kDim, kHeads>(keys, shared.q, lane, p);
    __syncwarp();
    fetch(2 * step + kSlots);
    float value_scale[2];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int at = key + lane / 4 + e / 2 * 8, head = lane % 4 * 2 + e % 2;
      if (sizeof(T) == 1) {
        const bool is_new = kNew && at == position;
        p[e] *= is_new ? shared.fresh_scales[0] : key_scales[e / 2];
        value_scale[e / 2] = is_new ? shared.fresh_scales[1] : value_scales[e / 2];
      }
      float score = p[e] * args.scale;
      if (!is_plain) score = head < heads.count ? finish_score(args, p[e], heads.first + head, position, at) : 0.0f;
      p[e] = at < end ? score * 1.44269504f : -INFINITY;
    }
    if (sizeof(T) == 1) fetch_scales(key + stride);
    softmax.take(p);
    if (sizeof(T) == 1)
#pragma unroll
      for (int e = 0; e < 4; ++e) p[e] *= value_scale[e / 2];
    uint32_t operand[2][2];
    split(p, operand);
    multiply_values<T, kDim>(await(2 * step + 1), operand, lane, softmax.sums);
    __syncwarp();
    fetch(2 * step + 1 + kSlots);
  }
  // The group's sum: each warp's lies where its ring was.
  float* warp_sums = reinterpret_cast<float*>(shared.ring[warp]);
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int head = lane % 4 * 2 + e % 2;
    if (head >= kHeads) continue;
#pragma unroll
    for (int j = 0; j < kDim / 16; ++j) warp_sums[head * kDim + column_of<T>(j, e, lane)] = softmax.sums[j][e];
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int head = lane % 4 * 2 + h;
    float total = softmax.total[h];
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) total += __shfl_xor_sync(kFullMask, total, offset);
    if (lane / 4 != 0 || head >= kHeads) continue;
    shared.maximum[warp][head] = softmax.maximum[h];
    shared.total[warp][head] = total;
  }
  group.sync();
#pragma unroll 1
  for (int h = warp; h < heads.count; h += kDecodeWarps) {
    float weights[kDecodeWarps], maximum = -INFINITY, total = 0;
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) maximum = fmaxf(maximum, shared.maximum[w][h]);
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) {
      weights[w] = power_of_two(shared.maximum[w][h] - maximum);
      total = fmaf(weights[w], shared.total[w][h], total);
    }
#pragma unroll
    for (int d = lane * 4; d < kDim; d += 128) {
      if (d >= dim) break;
      float4 sum{};
#pragma unroll
      for (int w = 0; w < kDecodeWarps; ++w)
        add_scaled(sum, *reinterpret_cast<const float4*>(&shared.ring[w][0][0] + (h * kDim + d) * 4), weights[w]);
      if (parts == 1)
        put_four(args, sequence, static_cast<int64_t>(heads.first + h) * dim + d, sum, 1 / total);
      else
        *reinterpret_cast<float4*>(meeting.sums(h, item.part) + d) = sum;
    }
    if (parts > 1 && lane == 0) *meeting.scale(h, item.part) = make_float2(maximum, total);
  }
  if (parts == 1 || !meeting.meet(group, parts)) return;
#pragma unroll 1
  for (int h = warp; h < heads.count; h += kDecodeWarps) meeting.join(args, sequence, heads.first, h, parts, lane);
}

/// One group's item: attention of a sequence's one query over a part of its keys. The last group of a column and
/// sequence to finish joins the parts. kDim: 64, 128 or 256, at least head_dim, of which rows of 16-byte chunks are
/// wanted. kNew: with NewTokens; the group of the last part puts them into the cache. `ready` is called by every thread
/// once, unless the part is empty: before it only what was there long before is read (keys of the past, lengths), after
/// it the projections, too. The bits depend on the sequence and its length alone. On return the group may still read
/// `shared`: sync before using it for another. Needs compute capability 8.0.
template <typename T, int kDim, int kHeads, bool kNew, int kSlots, typename Ready>
__device__ __forceinline__ void attend_query(const DecodeGroup& group, const DecodeItem& item,
                                             const AttentionArgs& args, const AttentionSequence& sequence,
                                             const NewTokens& tokens, float* scratch, unsigned* counters,
                                             DecodeShared<T, kDim, kHeads, kSlots>& shared, const Ready& ready) {
  const JoinInScratch meeting{
      scratch, counters + item.sequence * decode_columns<kHeads>(args) + item.column, &shared.is_last,
      item.sequence * args.heads + decode::heads_of<kHeads>(args, item.column).first, static_cast<int>(args.head_dim)};
  attend_part<T, kDim, kHeads, kNew>(group, item, args, sequence, tokens, meeting, shared, ready);
}

}  // namespace nibble::kernels::cuda
