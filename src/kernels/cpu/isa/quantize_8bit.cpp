// quantize_8bit: absmax and codes of a block while it lies in the first cache.
#include "kernels/cpu/isa/block_absmax.h"
#include "kernels/cpu/isa/encoder_8bit.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

template <typename T>
void quantize_blocks(const Quantize8BitArgs& args, const Encoder& encoder, const T* x, int64_t begin, int64_t end) {
  const bool streamed = args.block % 64 == 0 && is_streamed(args.codes, args.count);
  for (int64_t b = begin; b < end; ++b) {
    const int64_t first = b * args.block;
    const int64_t last = min_of(args.count, first + args.block);
    const BlockScale scale = block_scale(x + first, last - first);
    args.absmax[b] = scale.absmax;
    int64_t i = first;
    if (!scale.is_special) i += encode_run(encoder, x + i, last - i, scale.inverse, args.codes + i, streamed);
    for (; i < last; ++i) args.codes[i] = search_code(encoder.search, to_float(x[i]) * scale.inverse);
  }
  finish_stream(streamed);
}

}  // namespace

void quantize_8bit(const Context& context, const Quantize8BitArgs& args) {
  const Encoder& encoder = encoder_for(args.code_book);
  const int64_t grain = max_of(1, piece_elements(args.count) / args.block);
  with_type(args.dtype, args.x, [&](const auto* x) {
    for_ranges(context, ceil_of(args.count, args.block), grain,
               [&](int64_t begin, int64_t end) { quantize_blocks(args, encoder, x, begin, end); });
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
