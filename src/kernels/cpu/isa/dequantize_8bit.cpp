// dequantize_8bit: code book value times the block's absmax.
#include "kernels/cpu/isa/dequantize_8bit_lanes.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

template <typename T>
void dequantize_blocks(const Dequantize8BitArgs& args, const Values& values, T* out, int64_t begin, int64_t end) {
  const bool streamed = args.block % kDecodeStep == 0 && is_streamed(out, args.count * int64_t{sizeof(T)});
  for (int64_t b = begin; b < end; ++b) {
    const F32 scale = set1(args.absmax[b]);
    int64_t i = b * args.block;
    const int64_t last = min_of(args.count, i + args.block);
#if defined(__AVX512F__)
    i += decode_by_table(values, args.absmax[b], args.codes + i, last - i, out + i, streamed);
#endif
    for (; i + kDecodeStep <= last; i += kDecodeStep) decode_step(values, args.codes + i, scale, out + i, streamed);
    for (; i < last; ++i) out[i] = from_float<T>(args.code_book[args.codes[i]] * args.absmax[b]);
  }
  finish_stream(streamed);
}

}  // namespace

void dequantize_8bit(const Context& context, const Dequantize8BitArgs& args) {
  const Values values = make_values(args.code_book);
  const int64_t grain = max_of(1, piece_elements(args.count) / args.block);
  with_type(args.dtype, args.out, [&](auto* out) {
    for_ranges(context, ceil_of(args.count, args.block), grain,
               [&](int64_t begin, int64_t end) { dequantize_blocks(args, values, out, begin, end); });
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
