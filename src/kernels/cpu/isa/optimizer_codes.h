// A group of blocks of 8-bit optimizer states: to values and back, a step of four vectors at a time.
//
// For each instruction set: SignedTable, load_signed_table(book), decode(table, codes, absmax, out);
// encode_signed(encoder, count, codes, values, beside), encode_squares(encoder, x, count, inverse, codes, beside).
#pragma once

#include "kernels/cpu/isa/dequantize_8bit_lanes.h"
#include "kernels/cpu/isa/encoder_8bit.h"

#if defined(__AVX2__)

namespace nibble::kernels::cpu::NIBBLE_ISA {

/// Elements that are encoded together.
inline constexpr int64_t kStep = 4 * kLanes;
inline constexpr uint32_t kAllLanes = (1u << kLanes) - 1;

/// Of squares: any map. That of signed states is mirrored.
using SquareTable = decltype(Values::table);

#if defined(__AVX512F__)

using SignedTable = MirroredTable;
NIBBLE_SIMD SignedTable load_signed_table(const float* book) { return load_mirrored_table(book); }

/// Values of 64 codes, in order.
template <typename Table>
NIBBLE_SIMD void decode(const Table& table, const uint8_t* codes, F32 absmax, F32 (&out)[4]) {
  look_up(table, in_look_up_order(_mm512_loadu_si512(codes)), out);
  NIBBLE_UNROLL
  for (int q = 0; q < 4; ++q) out[q] = out[q] * absmax;
}

/// Codes of a mirrored map for `count` values: those from i on are values(i, y). Negative ones take no code of zero but
/// the one below.
template <typename Values, typename Beside>
NIBBLE_SIMD void encode_signed(const Encoder& encoder, int64_t count, uint8_t* codes, Values&& values,
                               Beside&& beside) {
  const MirroredLanes lanes = encoder.mirrored;
  encode_values<false, true>(lanes, count, values, [&](int64_t i, __m512i found) {
    _mm512_storeu_si512(codes + i, found);
    beside(i);
  });
}

/// Codes of a linear map.
template <typename Beside>
NIBBLE_SIMD void encode_squares(const Encoder& encoder, const float* x, int64_t count, float inverse, uint8_t* codes,
                                Beside&& beside) {
  encode_elements(encoder.linear, encoder.search, x, count, inverse, codes, beside);
}

/// Largest by bits.
NIBBLE_SIMD F32 max_bits(F32 a, F32 b) {
  return _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
}
NIBBLE_SIMD uint32_t lane_bits(Mask mask) { return mask; }

#else

using SignedTable = const float*;
NIBBLE_SIMD SignedTable load_signed_table(const float* book) { return book; }

NIBBLE_SIMD void decode(const float* table, const uint8_t* codes, F32 absmax, F32 (&out)[2]) {
  NIBBLE_UNROLL
  for (int q = 0; q < 2; ++q) out[q] = gather(table, codes + 8 * q) * absmax;
}

template <typename Values, typename Beside>
NIBBLE_SIMD void encode_signed(const Encoder& encoder, int64_t count, uint8_t* codes, Values&& values,
                               Beside&& beside) {
  encode_values<true, true>(encoder.lines, encoder.search, count, codes, values, beside);
}

template <typename Beside>
NIBBLE_SIMD void encode_squares(const Encoder& encoder, const float* x, int64_t count, float inverse, uint8_t* codes,
                                Beside&& beside) {
  const F32 scale = set1(inverse);
  const auto scaled = [&](int64_t i, F32(&y)[4]) {
    NIBBLE_UNROLL
    for (int q = 0; q < 4; ++q) y[q] = load(x + i + 8 * q) * scale;
  };
  encode_values<false, false>(encoder.lines, encoder.search, count, codes, scaled, beside);
}

NIBBLE_SIMD F32 max_bits(F32 a, F32 b) {
  return _mm256_castsi256_ps(_mm256_max_epu32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}
NIBBLE_SIMD uint32_t lane_bits(Mask mask) { return static_cast<uint32_t>(_mm256_movemask_ps(mask)); }

#endif

}  // namespace nibble::kernels::cpu::NIBBLE_ISA

#endif
