// quantize_4bit and dequantize_4bit: blocks over the flattened tensor, two codes a byte.
#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"
#include "quant/encode.h"

namespace nibble::kernels::reference {

void quantize_4bit(const Context& context, const Quantize4BitArgs& args) {
  for_each(context, quant::block_count(args.count, args.block), 64, [&](int64_t b) {
    const int64_t begin = b * args.block;
    const int64_t end = std::min(args.count, begin + args.block);
    const float absmax = block_absmax(args.x, args.dtype, begin, end);
    args.absmax[b] = absmax;
    const float inverse = quant::inverse_of(absmax);
    const auto encode = [&](int64_t i) {
      const float x =
          i < args.count ? load(args.x, args.dtype, i) : 0.0f;  // an odd count is padded with an element of 0
      return quant::encode_4bit(*args.code_book, x * inverse);
    };
    for (int64_t i = begin; i < end; i += 2) {  // blocks are even, so a byte never belongs to two of them
      const uint8_t high = encode(i);
      const uint8_t low = encode(i + 1);
      args.packed[i / 2] = static_cast<uint8_t>(high << 4 | low);
    }
  });
}

void dequantize_4bit(const Context& context, const Dequantize4BitArgs& args) {
  for_each(context, quant::block_count(args.count, args.block), 64, [&](int64_t b) {
    const float absmax = absmax_of(args.absmax, b);
    const int64_t end = std::min(args.count, (b + 1) * args.block);
    for (int64_t i = b * args.block; i < end; ++i)
      store(args.out, args.dtype, i, args.code_book[code_4bit(args.packed, i)] * absmax);
  });
}

}  // namespace nibble::kernels::reference
