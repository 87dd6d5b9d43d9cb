// The tables that find codes in one map of 256 values, and the loop over a run of elements.
#pragma once

#include "kernels/cpu/isa/quantize_8bit_eight_lines.h"
#include "kernels/cpu/isa/quantize_8bit_lanes.h"
#include "kernels/cpu/isa/quantize_8bit_linear.h"
#include "kernels/cpu/isa/quantize_8bit_mirrored.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

struct Encoder {
  float code_book[256];  // that the rest was made for; all zero at first, which no map is
  CodeSearch search;
  Lanes lanes;
  bool has_lanes;
#if defined(__AVX512F__)
  MirroredLanes mirrored;
  LinearLanes linear;
  bool is_mirrored, is_linear;
#elif defined(__AVX2__)
  EightLines lines;
  bool is_mirrored, is_linear;
#endif
};

/// Making the tables takes as long as quantizing 100,000 elements: those of the last two maps are kept, so that what
/// this call returns outlives the next one.
[[maybe_unused]] static const Encoder& encoder_for(const float* code_book) {
  static thread_local Encoder encoders[2];
  static thread_local int latest = 0;
  for (int i = 0; i < 2; ++i)
    if (__builtin_memcmp(encoders[i].code_book, code_book, sizeof encoders[i].code_book) == 0) {
      latest = i;
      return encoders[i];
    }
  latest = 1 - latest;
  Encoder& encoder = encoders[latest];
  __builtin_memcpy(encoder.code_book, code_book, sizeof encoder.code_book);
  make_code_search(code_book, encoder.search);
  encoder.has_lanes = make_lanes(encoder.search, encoder.lanes);
#if defined(__AVX512F__)
  encoder.is_mirrored = make_mirrored_lanes(code_book, encoder.mirrored);
  encoder.is_linear = make_linear_lanes(encoder.search, encoder.linear);
#elif defined(__AVX2__)
  // Ties go to the even code, which lies farther from zero for even steps from it, on both sides.
  encoder.is_mirrored = is_mirrored_book(code_book);
  const int zero = encoder.is_mirrored ? kZeroCode : 0;
  const bool has_lines = make_eight_lines(encoder.search.threshold + zero, 255 - zero, encoder.lines);
  encoder.is_linear = has_lines && !encoder.is_mirrored;
  encoder.is_mirrored = has_lines && encoder.is_mirrored;
#endif
  return encoder;
}

/// Finite elements, 64 at a time; returns how many.
template <typename T>
NIBBLE_SIMD int64_t encode_run(const Encoder& encoder, const T* x, int64_t count, float inverse, uint8_t* codes,
                               bool streamed) {
#if defined(__AVX512F__)
  if (encoder.is_mirrored) return encode_run(encoder.mirrored, x, count, inverse, codes, streamed);
  if constexpr (sizeof(T) == sizeof(float))
    if (encoder.is_linear) return encode_run(encoder.linear, encoder.search, x, count, inverse, codes);
#elif defined(__AVX2__)
  if (encoder.is_mirrored) return encode_run<true>(encoder.lines, encoder.search, x, count, inverse, codes);
  if (encoder.is_linear) return encode_run<false>(encoder.lines, encoder.search, x, count, inverse, codes);
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

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
