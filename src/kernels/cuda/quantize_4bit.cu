// quantize_4bit and dequantize_4bit: eight values a thread where shapes and pointers allow it, else one block a warp.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/cuda/device/absmax.cuh"
#include "kernels/cuda/device/blockwise.cuh"
#include "kernels/cuda/device/vector.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kCells = 64;  // of the search below, 32 of them from -1 to 1; the last is that of NaN
constexpr int kThreads = 256, kQuantizeThreads = 512;
constexpr int kVectors = 4;  // of eight values that a thread has in flight
constexpr int64_t kMostBlock = 8 * kQuantizeThreads;

/// [-1, 1] in cells of 1/16 with at most one threshold each: what a code is found by in one comparison.
struct Search {
  float threshold[kCells];
  uint8_t codes[kCells];  // below and, in the high half, above the threshold
  float thresholds[15];
  uint64_t code_of_rank;  // 16 nibbles
  uint32_t nan_code;
  bool has_cells;  // no cell holds two thresholds; otherwise all 15 are searched
};

Search make_search(const quant::CodeBook4Bit& book) {
  Search search{};
  search.has_cells = true;
  for (int c = 0; c < kCells; ++c) {
    const float begin = static_cast<float>(c - kCells / 2) / 16, end = begin + 1.0f / 16;
    const float last = std::nextafter(end, -2.0f);
    size_t below = 0, inside = 0;
    search.threshold[c] = std::numeric_limits<float>::infinity();
    for (const float t : book.thresholds) {
      if (t < begin) ++below;  // every number of the cell is past it
      if (t < begin || t >= last) continue;
      ++inside;
      search.threshold[c] = t;
    }
    if (inside > 1) search.has_cells = false;
    search.codes[c] =
        static_cast<uint8_t>(book.code_of_rank[below] | book.code_of_rank[std::min<size_t>(below + inside, 15)] << 4);
  }
  search.threshold[kCells - 1] = std::numeric_limits<float>::infinity();
  search.codes[kCells - 1] = book.nan_code;
  for (size_t r = 0; r < 16; ++r) search.code_of_rank |= uint64_t{book.code_of_rank[r]} << (4 * r);
  std::copy(book.thresholds.begin(), book.thresholds.end(), search.thresholds);
  search.nan_code = book.nan_code;
  return search;
}

/// The thresholds as a balanced tree; a code book of any order.
__device__ __forceinline__ uint32_t encode_by_tree(const Search& s, float y) {
  if (y != y) return s.nan_code;
  const float* t = s.thresholds;
  const bool a = y > t[7];
  const bool b = y > (a ? t[11] : t[3]);
  const bool c = y > (a ? (b ? t[13] : t[9]) : (b ? t[5] : t[1]));
  const bool d = y > (a ? (b ? (c ? t[14] : t[12]) : (c ? t[10] : t[8])) : (b ? (c ? t[6] : t[4]) : (c ? t[2] : t[0])));
  const uint32_t rank = (a ? 8u : 0u) | (b ? 4u : 0u) | (c ? 2u : 0u) | (d ? 1u : 0u);
  return static_cast<uint32_t>(s.code_of_rank >> (4 * rank)) & 15u;
}

struct Cell {
  float threshold;
  uint32_t codes;
};

/// Sixteen copies of the cells, one for each lane of a half warp: no two lanes meet in a bank.
struct CellTable {
  Cell cells[kCells][16];

  __device__ void fill(const Search& s) {
    for (int i = threadIdx.x; i < kCells * 16; i += blockDim.x)
      cells[i / 16][i % 16] = {s.threshold[i / 16], s.codes[i / 16]};
    __syncthreads();
  }
  /// The code in the low four bits.
  __device__ __forceinline__ uint32_t encode(float y) const {
    // floor(16 y) + kCells / 2 in the low bits; of NaN, all bits are set.
    const uint32_t cell = __float_as_uint(__fmaf_rd(y, 16.0f, 12582912.0f + kCells / 2)) & (kCells - 1);
    const Cell found = cells[cell][threadIdx.x % 16];
    return y > found.threshold ? found.codes >> 4 : found.codes;
  }
};

/// Blocks of 8 to kMostBlock values, a power of two; 8 values a thread.
template <typename T>
__global__ void __launch_bounds__(kQuantizeThreads, 2)
    quantize_vectors(const T* x, int64_t vectors, int log_lanes, const __grid_constant__ Search search,
                     uint32_t* packed, float* absmax) {
  __shared__ CellTable table;
  __shared__ float largest[kVectors][kQuantizeThreads / 32];
  table.fill(search);
  quantize_eights<T, kQuantizeThreads, kVectors>(
      x, vectors, log_lanes, absmax, largest,
      [&](const float(&y)[8]) {
        uint32_t word = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const int shift = 8 * (i / 2) + (i % 2 == 0 ? 4 : 0);
          word |= table.encode(y[i]) << shift & 15u << shift;
        }
        return word;
      },
      [&](int64_t at, uint32_t word) { packed[at] = word; });
}

/// Any shape: one block a warp, element by element.
template <typename T>
__global__ void quantize_any(const T* x, int64_t count, int64_t block, const __grid_constant__ Search search,
                             uint8_t* packed, float* absmax) {
  const int lane = threadIdx.x % 32;
  const int64_t warps = int64_t{gridDim.x} * blockDim.x / 32;
  const int64_t blocks = quant::block_count(count, block);
  for (int64_t b = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32; b < blocks; b += warps) {
    const int64_t begin = b * block, end = min(count, begin + block);
    float maximum = 0;
    for (int64_t i = begin + lane; i < end; i += 32) maximum = fmaxf(maximum, fabsf(to_float(x[i])));
    maximum = flush_denormal(warp_max(maximum));
    if (lane == 0) absmax[b] = maximum;
    const float inverse = inverse_of(maximum);
    for (int64_t i = begin + 2 * lane; i < end; i += 64) {
      const float high = to_float(x[i]), low = i + 1 < count ? to_float(x[i + 1]) : 0.0f;
      packed[i / 2] = static_cast<uint8_t>(encode_by_tree(search, __fmul_rn(high, inverse)) << 4 |
                                           encode_by_tree(search, __fmul_rn(low, inverse)));
    }
  }
}

struct Book {
  float values[16];
};

/// The two values of a byte, one copy for each lane of a half warp.
struct PairTable {
  float2 pairs[256][16];

  __device__ void fill(const Book& book) {
    for (int i = threadIdx.x; i < 256 * 16; i += blockDim.x)
      pairs[i / 16][i % 16] = make_float2(book.values[i / 16 / 16], book.values[i / 16 % 16]);
    __syncthreads();
  }
};

/// Blocks of at least 8 values, a power of two: 8 values a thread.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    dequantize_vectors(const uint32_t* packed, const __grid_constant__ Absmax absmax, int64_t vectors, int log_lanes,
                       const __grid_constant__ Book book, T* out) {
  __shared__ PairTable table;
  table.fill(book);
  const int64_t stride = int64_t{gridDim.x} * kThreads * kVectors;
  for (int64_t base = int64_t{blockIdx.x} * kThreads * kVectors + threadIdx.x; base < vectors; base += stride) {
    uint32_t words[kVectors];
    float scales[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = base + v * kThreads;
      words[v] = at < vectors ? packed[at] : 0;
      scales[v] = at < vectors ? absmax_at(absmax, at >> log_lanes) : 0.0f;
    }
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = base + v * kThreads;
      if (at >= vectors) break;
      float values[8];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = table.pairs[words[v] >> (8 * i) & 255][threadIdx.x % 16];
        values[2 * i] = __fmul_rn(pair.x, scales[v]);
        values[2 * i + 1] = __fmul_rn(pair.y, scales[v]);
      }
      Vector8<T>::pack(values).store(out + 8 * at);
    }
  }
}

template <typename T>
__global__ void dequantize_any(const uint8_t* packed, const __grid_constant__ Absmax absmax, int64_t count,
                               int64_t block, const __grid_constant__ Book book, T* out) {
  __shared__ float values[16];
  if (threadIdx.x < 16) values[threadIdx.x] = book.values[threadIdx.x];
  __syncthreads();
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    const uint32_t code = packed[i / 2] >> (i % 2 == 0 ? 4 : 0) & 15;
    out[i] = from_float<T>(__fmul_rn(values[code], absmax_at(absmax, i / block)));
  }
}

}  // namespace

void quantize_4bit(const Context& context, const Quantize4BitArgs& args) {
  if (args.count == 0) return;
  const Search search = make_search(*args.code_book);
  const bool has_vectors = search.has_cells && std::has_single_bit(static_cast<uint64_t>(args.block)) &&
                           args.block >= 8 && args.block <= kMostBlock && args.count % 8 == 0 &&
                           is_aligned(args.x, 16) && is_aligned(args.packed, 4);
  const cudaStream_t stream = stream_of(context.stream);
  with_float_type(args.dtype, [&](auto element) {
    using T = decltype(element);
    const T* x = static_cast<const T*>(args.x);
    if (!has_vectors) {
      quantize_any<T><<<blocks_for(quant::block_count(args.count, args.block), 8, 65536), 256, 0, stream>>>(
          x, args.count, args.block, search, args.packed, args.absmax);
      return;
    }
    const int64_t vectors = args.count / 8;
    const int log_lanes = std::countr_zero(static_cast<uint64_t>(args.block / 8));
    const unsigned blocks = blocks_for(vectors, kQuantizeThreads * kVectors, int64_t{context.multiprocessors} * 4);
    quantize_vectors<T><<<blocks, kQuantizeThreads, 0, stream>>>(x, vectors, log_lanes, search,
                                                                 reinterpret_cast<uint32_t*>(args.packed), args.absmax);
  });
}

void dequantize_4bit(const Context& context, const Dequantize4BitArgs& args) {
  if (args.count == 0) return;
  Book book;
  std::copy_n(args.code_book, 16, book.values);
  const bool has_vectors = std::has_single_bit(static_cast<uint64_t>(args.block)) && args.block >= 8 &&
                           args.count % 8 == 0 && is_aligned(args.out, 16) && is_aligned(args.packed, 4);
  const cudaStream_t stream = stream_of(context.stream);
  with_float_type(args.dtype, [&](auto element) {
    using T = decltype(element);
    T* out = static_cast<T*>(args.out);
    if (!has_vectors) {
      dequantize_any<T><<<blocks_for(args.count, 256, 65536), 256, 0, stream>>>(args.packed, args.absmax, args.count,
                                                                                args.block, book, out);
      return;
    }
    const int64_t vectors = args.count / 8;
    const int log_lanes = std::countr_zero(static_cast<uint64_t>(args.block / 8));
    const unsigned blocks = blocks_for(vectors, kThreads * kVectors, int64_t{context.multiprocessors} * 6);
    dequantize_vectors<T><<<blocks, kThreads, 0, stream>>>(reinterpret_cast<const uint32_t*>(args.packed), args.absmax,
                                                           vectors, log_lanes, book, out);
  });
}

}  // namespace nibble::kernels::cuda
