// quantize_4bit: absmax and codes of a block while it lies in the first cache.
#include "kernels/cpu/isa/block_absmax.h"
#include "kernels/cpu/isa/quantize_4bit_lanes.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

struct Encoder {
  const quant::CodeBook4Bit& book;
  CodeCells cells;
  LaneEncoder lanes;

  explicit Encoder(const quant::CodeBook4Bit& b)
      : book(b), cells(make_code_cells(b)), lanes(make_lane_encoder(b, cells)) {}
};

/// Any block: odd, short, with NaN or Inf in it.
template <typename T>
void encode_any(const Encoder& encoder, const T* x, int64_t count, BlockScale scale, uint8_t* packed) {
  const bool by_cell = encoder.cells.is_exact && !scale.is_special;
  const auto encode = [&](float value) -> unsigned {
    const float y = value * scale.inverse;
    return by_cell ? code_by_cell(encoder.cells, y) : search_code(encoder.book, y);
  };
  for (int64_t i = 0; i < count; i += 2) {
    const unsigned high = encode(to_float(x[i]));
    const unsigned low = encode(i + 1 < count ? to_float(x[i + 1]) : 0.0f);  // an odd count is padded with a zero
    packed[i / 2] = static_cast<uint8_t>(high << 4 | low);
  }
}

template <typename T>
NIBBLE_SIMD void encode_block(const Encoder& encoder, const T* x, int64_t count, BlockScale scale, uint8_t* packed,
                              bool streamed) {
  int64_t done = 0;
  if (encoder.cells.is_exact && !scale.is_special)
    for (; done + 64 <= count; done += 64) {
      prefetch_ahead(x + done, 64 * int64_t{sizeof(T)}, prefetch_distance(count * int64_t{sizeof(T)}));
      encode_64(encoder.lanes, x + done, scale.inverse, scale.inverse, packed + done / 2, streamed);
    }
  if (done < count) encode_any(encoder, x + done, count - done, scale, packed + done / 2);
}

template <typename T>
void quantize_blocks(const Quantize4BitArgs& args, const Encoder& encoder, const T* x, int64_t begin, int64_t end,
                     bool streamed) {
  for (int64_t b = begin; b < end; ++b) {
    const int64_t first = b * args.block;
    const int64_t count = min_of(args.block, args.count - first);
    const BlockScale scale = block_scale(x + first, count);
    args.absmax[b] = scale.absmax;
    encode_block(encoder, x + first, count, scale, args.packed + first / 2, streamed);
  }
}

/// Groups of kLanes blocks, as long as they are whole; returns the block after the last one.
template <int64_t kBlock, typename T>
int64_t quantize_groups(const Quantize4BitArgs& args, const Encoder& encoder, const T* x, int64_t begin, int64_t end,
                        bool streamed) {
  alignas(64) float inverse[kLanes];
  if (!encoder.cells.is_exact) return begin;
  for (; begin + kLanes <= end && (begin + kLanes) * kBlock <= args.count; begin += kLanes) {
    const T* group = x + begin * kBlock;
    uint8_t* packed = args.packed + begin * kBlock / 2;
    if (!scales_of_lanes<kBlock>(group, args.absmax + begin, inverse)) {
      quantize_blocks(args, encoder, x, begin, begin + kLanes, streamed);
      continue;
    }
    for (int64_t i = 0; i < kLanes * kBlock; i += 64) {
      prefetch_ahead(group + i, 64 * int64_t{sizeof(T)}, prefetch_distance(kLanes * kBlock * int64_t{sizeof(T)}));
      encode_64(encoder.lanes, group + i, inverse[i / kBlock], inverse[(i + 32) / kBlock], packed + i / 2, streamed);
    }
  }
  return begin;
}

template <typename T>
void quantize_range(const Quantize4BitArgs& args, const Encoder& encoder, const T* x, int64_t begin, int64_t end) {
  const bool streamed = is_streamed(args.packed, args.count / 2);
  if (args.block == 32) begin = quantize_groups<32>(args, encoder, x, begin, end, streamed);
  if (args.block == 64) begin = quantize_groups<64>(args, encoder, x, begin, end, streamed);
  if (args.block == 128) begin = quantize_groups<128>(args, encoder, x, begin, end, streamed);
  quantize_blocks(args, encoder, x, begin, end, streamed);
  finish_stream(streamed);
}

}  // namespace

void quantize_4bit(const Context& context, const Quantize4BitArgs& args) {
  const Encoder encoder(*args.code_book);
  const int64_t grain = max_of(1, piece_elements(args.count) / args.block);
  with_type(args.dtype, args.x, [&](const auto* x) {
    for_ranges(context, ceil_of(args.count, args.block), grain,
               [&](int64_t begin, int64_t end) { quantize_range(args, encoder, x, begin, end); });
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
