// quantize_8bit and dequantize_8bit: eight values a thread where shapes and pointers allow it, else one at a time.
#include <algorithm>
#include <bit>

#include "kernels/cuda/device/blockwise.cuh"
#include "kernels/cuda/device/code_tables.cuh"
#include "kernels/cuda/device/vector.cuh"
#include "kernels/cuda/entries.h"
#include "quant/format.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kVectors = 4;           // of eight values that a thread has in flight
constexpr int kCopies = 32;           // of what is looked up, one for each lane: no two meet in a bank
constexpr int64_t kMostBlock = 4096;  // values that share an absmax, of which each thread of a block has eight

struct Book {
  float values[256];
};

/// The exact search of code_tables.cuh for one book, made by the block that uses it.
struct SearchTable {
  float thresholds[256][kCopies];  // the last is infinity
  uint8_t first[2 * kCells];       // code of the least y in a cell: y > 0, y < 0
  int positions[256];              // of the cells that hold the thresholds, ascending in y

  static constexpr float kNan =
      1.5f;  // takes the place of NaN: its cell has code 0, and |y| is at most a little over 1

  /// Negative cells from the largest magnitude on, then positive ones; back from there to the place in `first`.
  __device__ static int position_of(float y) { return y < 0 ? kCells - 1 - cell_of(y) : kCells + cell_of(y); }
  __device__ static int place_of(int position) {
    return position < kCells ? 2 * kCells - 1 - position : position - kCells;
  }

  /// All threads of the block; true if no cell holds two thresholds.
  __device__ bool fill(const Book& book) {
    for (int i = threadIdx.x; i < 256 * kCopies; i += kThreads)
      (&thresholds[0][0])[i] = i / kCopies < 255 ? threshold_after(book.values, i / kCopies) : INFINITY;
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += kThreads)
      positions[i] = i < 255 ? position_of(thresholds[i][0]) : 2 * kCells - 1;
    __syncthreads();
    bool is_one_step = true;
    for (int i = threadIdx.x / 32; i < 256; i += kWarps) {  // the cells whose least y is past i thresholds
      const int begin = i == 0 ? 0 : positions[i - 1] + 1, end = positions[i];
      if (i > 0 && i < 255 && begin > end) is_one_step = false;
      for (int p = begin + static_cast<int>(threadIdx.x) % 32; p <= end; p += 32)
        first[place_of(p)] = static_cast<uint8_t>(i);
    }
    is_one_step = __syncthreads_and(is_one_step);
    if (threadIdx.x == 0) first[cell_of(kNan)] = 0;
    __syncthreads();
    return is_one_step;
  }

  __device__ __forceinline__ int place(float y) const {
    const uint32_t key = __float_as_uint(__fadd_rn(fminf(fabsf(y), kNan), kCellShift)) >> 16;
    return static_cast<int>(key) - kLowestCell + (static_cast<int>(__float_as_uint(y)) >> 31 & kCells);
  }
  __device__ __forceinline__ bool is_past(float y, uint32_t code) const {
    return y > thresholds[code][threadIdx.x % kCopies];
  }

  /// Every look-up of a kind before the next kind: they wait together.
  template <int kCount>
  __device__ __forceinline__ void encode(bool is_one_step, const float (&y)[kCount], uint32_t (&codes)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) codes[i] = first[place(y[i])];
    if (is_one_step) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) codes[i] += is_past(y[i], codes[i]) ? 1 : 0;
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        while (is_past(y[i], codes[i])) ++codes[i];
    }
  }
};

/// Blocks of 8 to kMostBlock values, a power of two; 8 values a thread.
template <typename T>
__global__ void __launch_bounds__(kThreads, 2)
    quantize_vectors(const T* x, int64_t vectors, int log_lanes, const __grid_constant__ Book book, uint2* codes,
                     float* absmax) {
  __shared__ SearchTable table;
  __shared__ float largest[kVectors][kWarps];
  const bool is_one_step = table.fill(book);
  struct Eight {
    uint32_t codes[8];
  };
  quantize_eights<T, kThreads, kVectors>(
      x, vectors, log_lanes, absmax, largest,
      [&](const float(&y)[8]) {
        Eight eight;
        table.encode(is_one_step, y, eight.codes);
        return eight;
      },
      [&](int64_t at, const Eight& eight) {
        const auto join = [&](int i) {
          return __byte_perm(__byte_perm(eight.codes[i], eight.codes[i + 1], 0x0040),
                             __byte_perm(eight.codes[i + 2], eight.codes[i + 3], 0x0040), 0x5410);
        };
        __stcs(codes + at, make_uint2(join(0), join(4)));
      });
}

/// Any shape: one block a warp, element by element.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    quantize_any(const T* x, int64_t count, int64_t block, const __grid_constant__ Book book, uint8_t* codes,
                 float* absmax) {
  __shared__ SearchTable table;
  const bool is_one_step = table.fill(book);
  const int lane = threadIdx.x % 32;
  const int64_t blocks = quant::block_count(count, block), warps = int64_t{gridDim.x} * kWarps;
  for (int64_t b = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; b < blocks; b += warps) {
    const int64_t begin = b * block, end = min(count, begin + block);
    float maximum = 0;
#pragma unroll 4
    for (int64_t i = begin + lane; i < end; i += 32) maximum = fmaxf(maximum, fabsf(to_float(x[i])));
    maximum = flush_denormal(warp_max(maximum));
    if (lane == 0) absmax[b] = maximum;
    const float inverse = inverse_of(maximum);
#pragma unroll 4
    for (int64_t i = begin + lane; i < end; i += 32) {
      const float y[1] = {__fmul_rn(to_float(x[i]), inverse)};
      uint32_t code[1];
      table.encode(is_one_step, y, code);
      codes[i] = static_cast<uint8_t>(code[0]);
    }
  }
}

/// Blocks of at least 8 values, a power of two; 8 values a thread.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    dequantize_vectors(const uint2* codes, const float* absmax, int64_t vectors, int log_lanes,
                       const __grid_constant__ Book book, T* out) {
  __shared__ float table[256][kCopies];
  for (int i = threadIdx.x; i < 256 * kCopies; i += kThreads) (&table[0][0])[i] = book.values[i / kCopies];
  __syncthreads();
  const int lane = threadIdx.x % kCopies;
  const int64_t stride = int64_t{gridDim.x} * kThreads * kVectors;
  for (int64_t base = int64_t{blockIdx.x} * kThreads * kVectors + threadIdx.x; base < vectors; base += stride) {
    uint2 words[kVectors];
    float scales[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = base + v * kThreads;
      words[v] = at < vectors ? __ldcs(codes + at) : uint2{0, 0};
      scales[v] = at < vectors ? absmax[at >> log_lanes] : 0.0f;
    }
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = base + v * kThreads;
      if (at >= vectors) break;
      float values[8];
#pragma unroll
      for (int i = 0; i < 8; ++i)
        values[i] = __fmul_rn(table[(i < 4 ? words[v].x : words[v].y) >> (8 * (i % 4)) & 255][lane], scales[v]);
      Vector8<T>::pack(values).store(out + 8 * at);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) dequantize_any(const uint8_t* codes, const float* absmax, int64_t count,
                                                           int64_t block, const __grid_constant__ Book book, T* out) {
  __shared__ float values[256];
  if (threadIdx.x < 256) values[threadIdx.x] = book.values[threadIdx.x];
  __syncthreads();
  const int64_t stride = int64_t{gridDim.x} * kThreads;
#pragma unroll 4
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride)
    out[i] = from_float<T>(__fmul_rn(values[codes[i]], absmax[i / block]));
}

Book book_of(const float* values) {
  Book book;
  std::copy_n(values, 256, book.values);
  return book;
}

bool has_vectors(int64_t count, int64_t block, const void* values, const void* codes) {
  return std::has_single_bit(static_cast<uint64_t>(block)) && block >= 8 && count % 8 == 0 && is_aligned(values, 16) &&
         is_aligned(codes, 8);
}

int log_lanes(int64_t block) { return std::countr_zero(static_cast<uint64_t>(block / 8)); }

}  // namespace

void quantize_8bit(const Context& context, const Quantize8BitArgs& args) {
  if (args.count == 0) return;
  const Book book = book_of(args.code_book);
  const cudaStream_t stream = stream_of(context.stream);
  const int64_t most = int64_t{context.multiprocessors} * 2;
  with_float_type(args.dtype, [&](auto element) {
    using T = decltype(element);
    const T* x = static_cast<const T*>(args.x);
    if (args.block <= kMostBlock && has_vectors(args.count, args.block, x, args.codes))
      quantize_vectors<T><<<blocks_for(args.count / 8, kThreads * kVectors, most), kThreads, 0, stream>>>(
          x, args.count / 8, log_lanes(args.block), book, reinterpret_cast<uint2*>(args.codes), args.absmax);
    else
      quantize_any<T><<<blocks_for(quant::block_count(args.count, args.block), kWarps, most), kThreads, 0, stream>>>(
          x, args.count, args.block, book, args.codes, args.absmax);
  });
}

void dequantize_8bit(const Context& context, const Dequantize8BitArgs& args) {
  if (args.count == 0) return;
  const Book book = book_of(args.code_book);
  const cudaStream_t stream = stream_of(context.stream);
  with_float_type(args.dtype, [&](auto element) {
    using T = decltype(element);
    T* out = static_cast<T*>(args.out);
    if (has_vectors(args.count, args.block, out, args.codes))
      dequantize_vectors<T><<<blocks_for(args.count / 8, kThreads * kVectors, int64_t{context.multiprocessors} * 4),
                              kThreads, 0, stream>>>(reinterpret_cast<const uint2*>(args.codes), args.absmax,
                                                     args.count / 8, log_lanes(args.block), book, out);
    else
      dequantize_any<T>
          <<<blocks_for(args.count, 4 * kThreads, int64_t{context.multiprocessors} * 16), kThreads, 0, stream>>>(
              args.codes, args.absmax, args.count, args.block, book, out);
  });
}

}  // namespace nibble::kernels::cuda
