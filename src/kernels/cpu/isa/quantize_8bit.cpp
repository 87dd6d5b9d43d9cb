// quantize_8bit: the upper 16 bits of y choose a first candidate, one exact comparison or a few settle the code.
#include "kernels/cpu/isa/block_absmax.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

/// Octaves of |y| that have cells of their own, from 2^-23 up; what is below shares the lowest cell.
constexpr int kOctaves = 24;
constexpr int kLowestKey = (127 - 23) << 7;
constexpr int kKeys = kOctaves * 128;

/// Code = how many thresholds lie below y. first[k] = thresholds below cell k; a cell is an interval of y.
struct CodeSearch {
  float threshold[256];         // ascending; the last is +inf
  uint8_t first[2][kKeys + 1];  // [sign][cell]: the least code in that cell
};

/// Cell of |y|: its upper 16 bits, 128 cells an octave.
NIBBLE_SIMD int cell_of(uint32_t bits) {
  const int key = static_cast<int>((bits & 0x7fffffffu) >> 16) - kLowestKey;
  return key < 0 ? 0 : key > kKeys ? kKeys : key;
}

/// The smallest y that counts as above the midpoint of code i and the next: ties go to the even one.
NIBBLE_SIMD float threshold_after(const float* book, int i) {
  const float midpoint = (book[i] + book[i + 1]) * 0.5f;
  if (i % 2 == 0 || midpoint <= book[i]) return midpoint;
  const uint32_t bits = __builtin_bit_cast(uint32_t, midpoint);  // y > the float below it means y >= midpoint
  if (midpoint == 0) return -0x1p-149f;
  return __builtin_bit_cast(float, midpoint > 0 ? bits - 1 : bits + 1);
}

void make_search(const float* book, CodeSearch& search) {
  for (int i = 0; i < 255; ++i) search.threshold[i] = threshold_after(book, i);
  search.threshold[255] = __builtin_inff();
  int code = 0;
  for (int k = 0; k <= kKeys; ++k) {  // ascending |y| for y >= 0
    const float low = k == 0 ? 0.0f : __builtin_bit_cast(float, static_cast<uint32_t>(k + kLowestKey) << 16);
    while (search.threshold[code] < low) ++code;
    search.first[0][k] = static_cast<uint8_t>(code);
  }
  code = 0;
  for (int k = kKeys; k >= 0; --k) {  // ascending y for y < 0: the least y of a cell is its largest magnitude
    const uint32_t upper = (static_cast<uint32_t>(k + kLowestKey + 1) << 16) - 1;
    const float low = k == kKeys ? -__builtin_inff() : -__builtin_bit_cast(float, upper);
    while (search.threshold[code] < low) ++code;
    search.first[1][k] = static_cast<uint8_t>(code);
  }
}

NIBBLE_SIMD uint8_t encode(const CodeSearch& search, float y) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, y);
  unsigned code = search.first[bits >> 31][cell_of(bits)];
  while (y > search.threshold[code]) ++code;
  return static_cast<uint8_t>(code);
}

template <typename T>
void quantize_blocks(const Quantize8BitArgs& args, const CodeSearch& search, const T* x, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    const int64_t first = b * args.block;
    const int64_t count = min_of(args.block, args.count - first);
    const BlockScale scale = block_scale(x + first, count);
    args.absmax[b] = scale.absmax;
    uint8_t* codes = args.codes + first;
    for (int64_t i = 0; i < count; ++i) {
      const float y = to_float(x[first + i]) * scale.inverse;
      codes[i] = y != y ? uint8_t{0} : encode(search, y);
    }
  }
}

}  // namespace

void quantize_8bit(const Context& context, const Quantize8BitArgs& args) {
  CodeSearch search;
  make_search(args.code_book, search);
  const int64_t grain = max_of(1, 32768 / args.block);
  with_type(args.dtype, args.x, [&](const auto* x) {
    for_ranges(context, ceil_of(args.count, args.block), grain,
               [&](int64_t begin, int64_t end) { quantize_blocks(args, search, x, begin, end); });
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
