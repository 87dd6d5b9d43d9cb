// quantize_8bit: absmax and codes of a block while it lies in the first cache.
#include "kernels/cpu/isa/block_absmax.h"
#include "kernels/cpu/isa/quantize_8bit_lanes.h"
#include "kernels/cpu/isa/quantize_8bit_mirrored.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

struct Encoder {
  float code_book[256];  // that the rest was made for; all zero at first, which no map is
  CodeSearch search;
  Lanes lanes;
  bool has_lanes;
#if defined(__AVX512F__)
  MirroredLanes mirrored;
  bool is_mirrored;
#endif
};

/// Making the tables takes as long as quantizing 100,000 elements: the last ones are kept.
const Encoder& encoder_for(const float* code_book) {
  static thread_local Encoder encoder;
  if (__builtin_memcmp(encoder.code_book, code_book, sizeof encoder.code_book) != 0) {
    __builtin_memcpy(encoder.code_book, code_book, sizeof encoder.code_book);
    make_code_search(code_book, encoder.search);
    encoder.has_lanes = make_lanes(encoder.search, encoder.lanes);
#if defined(__AVX512F__)
    encoder.is_mirrored = make_mirrored_lanes(code_book, encoder.mirrored);
#endif
  }
  return encoder;
}

/// Finite elements, 64 at a time; returns how many.
template <typename T>
NIBBLE_SIMD int64_t encode_run(const Encoder& encoder, const T* x, int64_t count, float inverse, uint8_t* codes,
                               bool streamed) {
#if defined(__AVX512F__)
  if (encoder.is_mirrored) return encode_run(encoder.mirrored, x, count, inverse, codes, streamed);
#endif
  const int64_t ahead = prefetch_distance(count * int64_t{sizeof(T)});
  int64_t i = 0;
  if (!encoder.has_lanes) return 0;
  for (; i + 64 <= count; i += 64) {
    prefetch_ahead(x + i, 64 * int64_t{sizeof(T)}, ahead);
    encode_64(encoder.lanes, x + i, inverse, codes + i, streamed);
  }
  return i;
}

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
