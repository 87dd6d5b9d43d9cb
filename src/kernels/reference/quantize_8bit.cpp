// quantize_8bit and dequantize_8bit: blockwise, against any ascending map of 256 values.
#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"
#include "quant/encode.h"

namespace nibble::kernels::reference {

void quantize_8bit(const Context& context, const Quantize8BitArgs& args) {
  for_each(context, quant::block_count(args.count, args.block), 16, [&](int64_t b) {
    const int64_t begin = b * args.block;
    const int64_t end = std::min(args.count, begin + args.block);
    const float absmax = block_absmax(args.x, args.dtype, begin, end);
    args.absmax[b] = absmax;
    const float inverse = quant::inverse_of(absmax);
    for (int64_t i = begin; i < end; ++i)
      args.codes[i] = quant::encode_8bit(args.code_book, load(args.x, args.dtype, i) * inverse);
  });
}

void dequantize_8bit(const Context& context, const Dequantize8BitArgs& args) {
  for_each(context, quant::block_count(args.count, args.block), 16, [&](int64_t b) {
    const int64_t end = std::min(args.count, (b + 1) * args.block);
    for (int64_t i = b * args.block; i < end; ++i)
      store(args.out, args.dtype, i, args.code_book[args.codes[i]] * args.absmax[b]);
  });
}

}  // namespace nibble::kernels::reference
