// dequantize_8bit: code book value times the block's absmax.
#include "kernels/cpu/isa/simd.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

template <typename T>
void dequantize_range(const Dequantize8BitArgs& args, T* out, int64_t first, int64_t last, float absmax) {
  const F32 scale = set1(absmax);
  int64_t i = first;
  for (; i + kLanes <= last; i += kLanes) {
    float values[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) values[lane] = args.code_book[args.codes[i + lane]];
    store(out + i, load(values) * scale);
  }
  for (; i < last; ++i) out[i] = from_float<T>(args.code_book[args.codes[i]] * absmax);
}

}  // namespace

void dequantize_8bit(const Context& context, const Dequantize8BitArgs& args) {
  const int64_t grain = max_of(1, 32768 / args.block);
  with_type(args.dtype, args.out, [&](auto* out) {
    for_ranges(context, ceil_of(args.count, args.block), grain, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        dequantize_range(args, out, b * args.block, min_of(args.count, (b + 1) * args.block), args.absmax[b]);
    });
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
