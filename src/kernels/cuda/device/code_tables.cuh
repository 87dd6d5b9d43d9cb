// The exact search for 8-bit codes on the device: the upper half of y's bits names a cell, whose first code one
// comparison settles; the tables lie in shared memory, a copy for each bank.
#pragma once

#include <array>
#include <cmath>

#include "base/half.h"
#include "kernels/cuda/device/element.cuh"

namespace nibble::kernels::cuda {

/// Added to |y|, so that tiny ones share the lowest cell: 128 cells to each octave from there to 1.
inline constexpr float kCellShift = 0x1p-23f;
inline constexpr int kLowestCell = (127 - 23) << 7, kHighestCell = 127 << 7;
inline constexpr int kCells = 3072;
static_assert(kHighestCell - kLowestCell < kCells);

/// y is past it from the midpoint of code i and the next on; ties go to the even one.
__host__ __device__ inline float threshold_after(const float* book, int i) {
  const float midpoint = (book[i] + book[i + 1]) * 0.5f;
  if (i % 2 == 0 || midpoint <= book[i]) return midpoint;
  return nextafterf(midpoint, -INFINITY);
}

/// Of y's magnitude.
__host__ __device__ inline int cell_of(float y) {
  const int key = static_cast<int>(__builtin_bit_cast(uint32_t, fabsf(y) + kCellShift) >> 16) - kLowestCell;
  return key < kCells - 1 ? key : kCells - 1;
}

/// One code book, ready for both directions. Code of y: how many thresholds lie below it.
struct CodeTables {
  float values[256];
  float thresholds[256];     // the last is infinity
  uint8_t first[2][kCells];  // code of the least y in a cell: y > 0, y < 0
  bool is_one_step;          // no cell holds two thresholds
};

/// Made on the host from 256 ascending values. A negative y never takes the code of zero, but the one below.
class CodeTableMaker {
 public:
  explicit CodeTableMaker(const float* book) {
    for (int i = 0; i < 256; ++i) tables_.values[i] = book[i];
    for (int i = 0; i < 255; ++i) tables_.thresholds[i] = threshold_after(book, i);
    tables_.thresholds[255] = INFINITY;
    for (int i = 1; i < 256; ++i)
      if (book[i] == 0) between_ = i - 1;
    // Never consulted: zero and what is above begin with the code of zero, what is below stays below.
    if (between_ >= 0) tables_.thresholds[between_] = 0;
    fill();
  }
  const CodeTables& tables() const { return tables_; }

 private:
  /// Ascending in y: negative cells from the largest magnitude, then what divides the signs, then positive cells.
  int position_of(int threshold) const {
    const float y = tables_.thresholds[threshold];
    if (threshold == between_) return kCells;
    return std::signbit(y) ? kCells - 1 - cell_of(y) : kCells + 1 + cell_of(y);
  }
  void fill() {
    int below = 0;  // thresholds before the cell
    tables_.is_one_step = true;
    for (int position = 0; position <= 2 * kCells; ++position) {
      if (position < kCells) tables_.first[1][kCells - 1 - position] = static_cast<uint8_t>(below);
      if (position > kCells) tables_.first[0][position - kCells - 1] = static_cast<uint8_t>(below);
      int inside = 0;
      for (; below + inside < 255 && position_of(below + inside) == position; ++inside) {
      }
      if (inside > 1 && position != kCells) tables_.is_one_step = false;
      below += inside;
    }
  }

  CodeTables tables_{};
  int between_ = -1;  // the threshold below the code of zero
};

/// Making the tables takes some ten microseconds: those of the last two books are kept.
inline const CodeTables& code_tables(const float* book) {
  static thread_local std::array<CodeTables, 2> kept{};
  static thread_local size_t latest = 0;
  for (size_t i = 0; i < 2; ++i) {
    bool is_same = true;
    for (int v = 0; v < 256 && is_same; ++v) is_same = kept[i].values[v] == book[v];
    if (!is_same) continue;
    latest = i;
    return kept[i];
  }
  latest = 1 - latest;
  return kept[latest] = CodeTableMaker(book).tables();
}

/// Where the tables of two books lie in shared memory. With a copy for each of the 32 banks, the cells of negative
/// numbers lie 64 KiB below those of positive ones, so that one byte permutation makes the offset.
template <int kCopies>
struct SharedCodes {
  static constexpr int kTable = 256 * 4 * kCopies;
  static constexpr int kSpan = kCopies == 32 ? 65536 : 2 * kCells;
  static constexpr int kPositive = kSpan;
  /// Decoding values of the first book fill the gap.
  static constexpr int kRest = kSpan + 2 * kCells;
  static constexpr int kBytes = kCopies == 32 ? kRest + 3 * kTable : kRest + 4 * kTable;

  static constexpr int values_at(int book) {
    if (kCopies == 32) return book == 0 ? 2 * kCells : kRest;
    return kRest + book * kTable;
  }
  static constexpr int thresholds_at(int book) { return kRest + (kCopies == 32 ? 1 + book : 2 + book) * kTable; }
  static constexpr int cells_at(int book) { return kPositive + book * kCells - kLowestCell; }

  unsigned char* shared;
  unsigned lane_offset;
  bool is_one_step[2];

  /// All threads of the block; ends with a barrier.
  __device__ __forceinline__ SharedCodes(unsigned char* memory, const CodeTables* books)
      : shared(memory), lane_offset(threadIdx.x % kCopies * 4) {
#pragma unroll
    for (int book = 0; book < 2; ++book) {
      const CodeTables& from = books[book];
      is_one_step[book] = from.is_one_step;
      for (int i = threadIdx.x; i < 256 * kCopies; i += blockDim.x) {
        reinterpret_cast<float*>(memory + values_at(book))[i] = from.values[i / kCopies];
        reinterpret_cast<float*>(memory + thresholds_at(book))[i] = from.thresholds[i / kCopies];
      }
      for (int i = threadIdx.x; i < kCells / 4; i += blockDim.x) {
        reinterpret_cast<uint32_t*>(memory + kPositive + book * kCells)[i] =
            reinterpret_cast<const uint32_t*>(from.first[0])[i];
        reinterpret_cast<uint32_t*>(memory + book * kCells)[i] = reinterpret_cast<const uint32_t*>(from.first[1])[i];
      }
    }
    __syncthreads();
  }

  __device__ __forceinline__ float at(int table, unsigned offset) const {
    return *reinterpret_cast<const float*>(shared + table + offset);
  }

  /// The value of byte `i` of eight codes.
  template <int kBook>
  __device__ __forceinline__ float decode(const uint2& codes, int i) const {
    constexpr int kShift = kCopies == 32 ? 7 : 5;
    static_assert(kCopies == 32 || kCopies == 8);
    const unsigned word = i < 4 ? codes.x : codes.y;
    const int right = 8 * (i % 4) - kShift;
    const unsigned shifted = right >= 0 ? word >> right : word << -right;
    return at(values_at(kBook), (shifted & (255u << kShift)) | lane_offset);
  }

  __device__ __forceinline__ int cell_offset(float y) const {
    const unsigned key = __float_as_uint(__fadd_rn(fabsf(y), kCellShift));
    if constexpr (kCopies == 32) {
      int offset;  // the upper half of key, and the sign of y as the bits above it
      asm("prmt.b32 %0, %1, %2, 0xff32;" : "=r"(offset) : "r"(key), "r"(__float_as_uint(y)));
      return offset;
    }
    return static_cast<int>(key >> 16) - (static_cast<int>(__float_as_uint(y)) >> 31 & kSpan);
  }

  template <int kBook>
  __device__ __forceinline__ float threshold(unsigned code) const {
    return at(thresholds_at(kBook), code * (4 * kCopies) + lane_offset);
  }

  /// Every look-up of a kind before the next kind: they wait together.
  template <int kBook>
  __device__ __forceinline__ void encode(const float (&y)[8], unsigned (&codes)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) codes[i] = shared[cells_at(kBook) + cell_offset(y[i])];
    if (is_one_step[kBook]) {
#pragma unroll
      for (int i = 0; i < 8; ++i) codes[i] += y[i] > threshold<kBook>(codes[i]) ? 1 : 0;
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        while (y[i] > threshold<kBook>(codes[i])) ++codes[i];
    }
  }
};

}  // namespace nibble::kernels::cuda
