// quantize_4bit: absmax and codes of a block while it lies in the first cache.
#include "kernels/cpu/isa/block_absmax.h"
#include "kernels/cpu/isa/code_cells.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

/// Any block: odd, short, with NaN or Inf in it.
template <typename T>
void encode_any(const quant::CodeBook4Bit& book, const CodeCells& cells, const T* x, int64_t count, BlockScale scale,
                uint8_t* packed) {
  const auto encode = [&](float value) -> unsigned {
    const float y = value * scale.inverse;
    if (!cells.is_exact || scale.is_special) return search_code(book, y);
    const int cell = cell_of(y);
    return cells.code[cell + (y > cells.threshold[cell] ? 32 : 0)];
  };
  for (int64_t i = 0; i < count; i += 2) {
    const unsigned high = encode(to_float(x[i]));
    const unsigned low = i + 1 < count ? encode(to_float(x[i + 1])) : 0;
    packed[i / 2] = static_cast<uint8_t>(high << 4 | low);
  }
}

template <typename T>
void quantize_blocks(const Quantize4BitArgs& args, const CodeCells& cells, const T* x, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    const int64_t first = b * args.block;
    const int64_t count = min_of(args.block, args.count - first);
    const BlockScale scale = block_scale(x + first, count);
    args.absmax[b] = scale.absmax;
    encode_any(*args.code_book, cells, x + first, count, scale, args.packed + first / 2);
  }
}

}  // namespace

void quantize_4bit(const Context& context, const Quantize4BitArgs& args) {
  const CodeCells cells = make_code_cells(*args.code_book);
  const int64_t grain = max_of(1, 32768 / args.block);
  with_type(args.dtype, args.x, [&](const auto* x) {
    for_ranges(context, ceil_of(args.count, args.block), grain,
               [&](int64_t begin, int64_t end) { quantize_blocks(args, cells, x, begin, end); });
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
