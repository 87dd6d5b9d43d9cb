// Where the sums of a pair's warp groups go: to the owner of a tile that is cut in pieces, or to y.
#pragma once

#include "kernels/cuda/device/walk_4bit.cuh"

namespace nibble::kernels::cuda {

/// Of the 128 threads of a warp group.
__device__ __forceinline__ void group_waits(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(group + 3) : "memory");
}

/// The pairs that left pieces of the last tile of a share, in their order, if the share has the tile's first piece.
template <typename Visit>
__device__ __forceinline__ void for_left_pieces(const Tile4BitArgs& args, const TileShare& share, int pair, int pairs,
                                                const Visit& visit) {
  const int tile = (share.end - 1) / args.tile.chunks, tile_end = (tile + 1) * args.tile.chunks;
  if (share.at == share.end || share.at > tile * args.tile.chunks) return;
  int at = share.end;
  for (int next = pair + 1; at < tile_end; ++next) {
    visit(next);
    at = TileShare(args, next, pairs).end;
  }
}

/// True if a share's last tile is begun so late that the next pair, which has all the rest of it, will have left its
/// sums: this pair's sums then begin with them, long before all pairs add and store at once.
__device__ __forceinline__ bool begins_with_left(const Tile4BitArgs& args, const TileShare& share, int pair,
                                                 int pairs) {
  const int tile = (share.end - 1) / args.tile.chunks, begin = tile * args.tile.chunks;
  const int left = begin + args.tile.chunks - share.end;
  constexpr int kMargin = 4;
  return left > 0 && begin - share.at >= left + kMargin && TileShare(args, pair + 1, pairs).end >= share.end + left;
}

/// Where the sums of one warp group of one block lie while the tile's owner wants them; it brings them back in parts.
template <typename Shape>
struct PairPiece {
  static constexpr int kParts = 4;  // of both groups
  static constexpr int kPartBytes = Shape::sums * 128 * 4 / 2;
  static_assert(kPartBytes <= Shape::kStageBytes);

  float4* partial;
  uint32_t* flag;

  __device__ PairPiece(const TileArgs& args, int pair, int rank, int group) {
    const int at = (pair * 2 + rank) * 2 + group;
    partial = reinterpret_cast<float4*>(args.partials) + int64_t{at} * (Shape::sums / 4) * 128;
    flag = args.flags + at;
  }

  __device__ __forceinline__ void leave(const float (&sums)[Shape::sums], int group) const {
    float4* to = partial + threadIdx.x % 128;
#pragma unroll
    for (int i = 0; i < Shape::sums / 4; ++i)
      __stcg(to + i * 128, make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]));
    asm volatile("bar.arrive %0, 160;" ::"r"(group + 5) : "memory");
  }

  /// By a warp of its own, so that the group goes on while its sums are on their way.
  __device__ __forceinline__ void tell(int group) const {
    asm volatile("bar.sync %0, 160;" ::"r"(group + 5) : "memory");
    if (threadIdx.x % 32 == 0) asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(1u) : "memory");
  }

  /// By that warp too, once the sums are there that the group begins with.
  __device__ __forceinline__ void tell_begin(int group) const {
    if (threadIdx.x % 32 == 0) {
      while (load_acquire(flag) == 0) {
      }
      *flag = 0;
    }
    __syncwarp();
    asm volatile("bar.arrive %0, 160;" ::"r"(group + 7) : "memory");
  }

  /// Instead of zeros.
  __device__ __forceinline__ void begin(float (&sums)[Shape::sums], int group) const {
    asm volatile("bar.sync %0, 160;" ::"r"(group + 7) : "memory");
    const float4* from = partial + threadIdx.x % 128;
    wgmma_wait<0>();  // done before; or else the compiler finds products under way and serializes them all
#pragma unroll
    for (int i = 0; i < Shape::sums / 4; ++i) {
      const float4 v = __ldcg(from + i * 128);
      sums[4 * i] += v.x, sums[4 * i + 1] += v.y, sums[4 * i + 2] += v.z, sums[4 * i + 3] += v.w;
    }
  }

  /// Until it is there for the copy engine, by one thread.
  __device__ __forceinline__ void wait() const {
    while (load_acquire(flag) == 0) {
    }
    *flag = 0;
    asm volatile("fence.proxy.async.global;" ::: "memory");
  }

  __device__ __forceinline__ const void* part(int half) const {
    return reinterpret_cast<const uint8_t*>(partial) + half * kPartBytes;
  }
};

/// A thread's sums added to what y[i, n] should get beside them: the bias of its two rows of the weight.
template <typename Shape>
__device__ __forceinline__ void load_bias(const DeviceJob& job, int n, float (&bias)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) bias[h] = job.out.bias ? job.out.bias[min(n + 8 * h, job.rows - 1)] : 0.0f;
}

/// y[i, n] for a thread's sums: rows n and 8 on of the weight, every eighth pair of rows of x from i on. What is added
/// to is loaded for sixteen at a time.
template <typename Y, typename Shape>
__device__ __forceinline__ void store_each(const TileArgs& args, const DeviceJob& job, int n, int i,
                                           const float (&sums)[Shape::sums]) {
  float bias[2];
  load_bias<Shape>(job, n, bias);
  Y* y = static_cast<Y*>(job.out.y) + int64_t{i} * job.out.y_stride + n;
  const bool is_row[2] = {n < job.rows, n + 8 < job.rows};
#pragma unroll
  for (int first = 0; first < Shape::sums; first += 16) {
    float values[16];
    const auto at = [&](int e) { return (2 * first + e / 4 * 8 + e % 2) * job.out.y_stride + e % 4 / 2 * 8; };
    const auto is_inside = [&](int e) { return is_row[e % 4 / 2] && i + 2 * first + e / 4 * 8 + e % 2 < args.m; };
    if (job.out.accumulate) {
#pragma unroll
      for (int e = 0; e < 16; ++e) values[e] = is_inside(e) ? to_float(y[at(e)]) : 0.0f;
    } else {
#pragma unroll
      for (float& value : values) value = 0;
    }
#pragma unroll
    for (int e = 0; e < 16; ++e)
      if (is_inside(e)) y[at(e)] = from_float<Y>(values[e] + (sums[first + e] + bias[e % 4 / 2]));
  }
}

/// y in bf16 and aligned, turned through the table's unused halves so that whole lines are stored: 64 rows of the
/// weight from `row` by the tile's rows of x from `column` on.
template <typename Shape>
__device__ __forceinline__ void store_turned(const TileArgs& args, const DeviceJob& job, int row, int column,
                                             const float (&sums)[Shape::sums], uint32_t shared, int group) {
  constexpr int kAtOnce = 128;  // rows of x, one in each row of the group's part of the table
  const int thread = static_cast<int>(threadIdx.x) % 128, warp = thread / 32, lane = thread % 32;
  const uint32_t memory = shared + group * kAtOnce * Shape::kTableRow + 128;
  float bias[2];
  load_bias<Shape>(job, row + warp * 16 + lane / 4, bias);
  const uint32_t to =
      memory + (lane / 16 * 8 + lane % 8) * Shape::kTableRow + ((2 * warp + lane / 8 % 2) ^ lane % 8) * 16;
  const int n = row + thread % 8 * 8;
  const uint32_t from = memory + thread / 8 * Shape::kTableRow + (thread % 8 ^ thread / 8 % 8) * 16;
  __nv_bfloat16* whole_y = static_cast<__nv_bfloat16*>(job.out.y) + int64_t{column} * job.out.y_stride + n;
#pragma unroll
  for (int first = 0; first < Shape::columns; first += kAtOnce) {
#pragma unroll
    for (int j = 0; j < kAtOnce / 16; ++j) {
      if (first + 16 * j >= Shape::columns) break;
      uint32_t words[4];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const float* pair = sums + first / 2 + 8 * j + 4 * (m / 2) + 2 * (m % 2);
        words[m] = round_pair<__nv_bfloat16>(pair[0] + bias[m % 2], pair[1] + bias[m % 2]);
      }
      asm volatile(
          "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(to + j * 16 * Shape::kTableRow),
          "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
          : "memory");
    }
    group_waits(group);
    const int count = min(min(kAtOnce, Shape::columns - first), args.m - column - first);
    if (count == kAtOnce && n + 8 <= job.rows) {
      __nv_bfloat16* y = whole_y + int64_t{first + thread / 8} * job.out.y_stride;
      uint4 v[kAtOnce / 16];
#pragma unroll
      for (int j = 0; j < kAtOnce / 16; ++j) v[j] = load_shared_16(from + 16 * j * Shape::kTableRow);
#pragma unroll
      for (int j = 0; j < kAtOnce / 16; ++j) *reinterpret_cast<uint4*>(y + 16 * j * job.out.y_stride) = v[j];
    } else {
      for (int i = thread / 8; i < count; i += 16) {
        const uint4 v = load_shared_16(from + (i - thread / 8) * Shape::kTableRow);
        __nv_bfloat16* y = whole_y + int64_t{first + i} * job.out.y_stride;
        if (n + 8 <= job.rows) {
          *reinterpret_cast<uint4*>(y) = v;
        } else {
          const __nv_bfloat16* values = reinterpret_cast<const __nv_bfloat16*>(&v);
#pragma unroll
          for (int c = 0; c < 8; ++c)
            if (n + c < job.rows) y[c] = values[c];
        }
      }
    }
    group_waits(group);
  }
}

/// 64 rows of the weight from `row` on, rows of x from `column` on.
template <typename Shape>
__device__ __forceinline__ void store_group(const TileArgs& args, const DeviceJob& job, int row, int column,
                                            const float (&sums)[Shape::sums], uint32_t shared, int group) {
  const int n = row + static_cast<int>(threadIdx.x) % 128 / 32 * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
  const int i = column + 2 * (static_cast<int>(threadIdx.x) % 4);
  if (job.out.y_dtype != DType::bf16)
    store_each<float, Shape>(args, job, n, i, sums);
  else if (job.out.accumulate || job.out.y_stride % 8 != 0 || reinterpret_cast<uint64_t>(job.out.y) % 16 != 0)
    store_each<__nv_bfloat16, Shape>(args, job, n, i, sums);
  else
    store_turned<Shape>(args, job, row, column, sums, shared, group);
}

}  // namespace nibble::kernels::cuda
