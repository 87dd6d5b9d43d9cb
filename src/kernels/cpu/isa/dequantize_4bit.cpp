// dequantize_4bit: a block's sixteen possible outputs are computed once, then looked up.
#include "kernels/cpu/isa/dequantize_4bit_lanes.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

NIBBLE_SIMD float absmax_of(const Absmax& absmax, int64_t b) {
  if (absmax.values) return absmax.values[b];
  const float difference = absmax.nested_code_book[absmax.codes[b]] * absmax.nested_absmax[b / quant::kNestedBlock];
  return difference + absmax.offset;
}

template <typename T>
void dequantize_blocks(const Dequantize4BitArgs& args, T* out, int64_t begin, int64_t end) {
  const bool streamed = args.block % 32 == 0 && is_streamed(out, args.count * int64_t{sizeof(T)});
  for (int64_t b = begin; b < end; ++b) {
    const float absmax = absmax_of(args.absmax, b);
    const auto outputs = make_outputs(args.code_book, absmax, out);
    int64_t i = b * args.block;
    const int64_t last = min_of(args.count, i + args.block);
    for (; i + 32 <= last; i += 32) look_up_32(outputs, args.packed + i / 2, out + i, streamed);
    for (; i < last; ++i) out[i] = from_float<T>(args.code_book[(args.packed[i / 2] >> (i % 2 ? 0 : 4)) & 15] * absmax);
  }
  finish_stream(streamed);
}

}  // namespace

void dequantize_4bit(const Context& context, const Dequantize4BitArgs& args) {
  const int64_t grain = max_of(1, piece_elements(args.count) / args.block);
  with_type(args.dtype, args.out, [&](auto* out) {
    for_ranges(context, ceil_of(args.count, args.block), grain,
               [&](int64_t begin, int64_t end) { dequantize_blocks(args, out, begin, end); });
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
