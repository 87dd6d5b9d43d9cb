// dequantize_4bit: a block's sixteen possible outputs are computed once, then looked up.
#include "kernels/cpu/isa/simd.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

NIBBLE_SIMD float absmax_of(const Absmax& absmax, int64_t b) {
  if (absmax.values) return absmax.values[b];
  const float difference = absmax.nested_code_book[absmax.codes[b]] * absmax.nested_absmax[b / quant::kNestedBlock];
  return difference + absmax.offset;
}

template <typename T>
void dequantize_blocks(const Dequantize4BitArgs& args, T* out, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    const float absmax = absmax_of(args.absmax, b);
    T values[16];
    for (int i = 0; i < 16; ++i) values[i] = from_float<T>(args.code_book[i] * absmax);
    const int64_t first = b * args.block;
    const int64_t last = min_of(args.count, first + args.block);
    for (int64_t i = first; i + 1 < last; i += 2) {
      const unsigned byte = args.packed[i / 2];
      out[i] = values[byte >> 4];
      out[i + 1] = values[byte & 15];
    }
    if (last % 2) out[last - 1] = values[args.packed[last / 2] >> 4];
  }
}

}  // namespace

void dequantize_4bit(const Context& context, const Dequantize4BitArgs& args) {
  const int64_t grain = max_of(1, 32768 / args.block);
  with_type(args.dtype, args.out, [&](auto* out) {
    for_ranges(context, ceil_of(args.count, args.block), grain,
               [&](int64_t begin, int64_t end) { dequantize_blocks(args, out, begin, end); });
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
