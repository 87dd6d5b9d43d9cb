// A whole block of an 8-bit optimizer step in AVX-512: states are decoded in the loop that steps them, so that the
// look-ups run while the divider is busy.
#pragma once

#include "kernels/cpu/isa/dequantize_8bit_lanes.h"
#include "kernels/cpu/isa/encoder_8bit.h"
#include "kernels/cpu/isa/optimizer_block.h"

#if defined(__AVX512F__)

namespace nibble::kernels::cpu::NIBBLE_ISA {

NIBBLE_SIMD void load_64(const float* x, F32 (&out)[4]) {
  NIBBLE_UNROLL
  for (int q = 0; q < 4; ++q) out[q] = load(x + 16 * q);
}
NIBBLE_SIMD void store_64(float* x, const F32 (&values)[4]) {
  NIBBLE_UNROLL
  for (int q = 0; q < 4; ++q) store(x + 16 * q, values[q]);
}
NIBBLE_SIMD void load_64(const bf16_t* x, F32 (&out)[4]) {
  NIBBLE_UNROLL
  for (int q = 0; q < 4; ++q) out[q] = load(x + 16 * q);
}
/// The processor's own rounding flushes denormals: those go the long way.
NIBBLE_SIMD void store_64(bf16_t* x, const F32 (&values)[4]) {
  constexpr int kDenormal = 0x20;
  uint32_t denormal = 0;
  NIBBLE_UNROLL
  for (int q = 0; q < 4; ++q) denormal |= _mm512_fpclass_ps_mask(values[q], kDenormal);
  if (__builtin_expect(denormal != 0, 0)) {
    NIBBLE_UNROLL
    for (int q = 0; q < 4; ++q) store(x + 16 * q, values[q]);
    return;
  }
  _mm512_storeu_si512(x, round_normal_bf16(values[0], values[1]));
  _mm512_storeu_si512(x + 32, round_normal_bf16(values[2], values[3]));
}

/// Codes of one state of a block, and what it is decoded with.
struct CodedState {
  const FloatTable* table;
  const uint8_t* codes;
  float absmax;
};

/// 64 states in order.
NIBBLE_SIMD void decode_64(const CodedState& state, int64_t i, F32 (&out)[4]) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  look_up(*state.table, _mm512_permutexvar_epi32(order, _mm512_loadu_si512(state.codes + i)), out);
  NIBBLE_UNROLL
  for (int q = 0; q < 4; ++q) out[q] = out[q] * set1(state.absmax);
}

/// New states of a block that are still to be encoded: while the next block is stepped.
struct PendingBlock {
  BlockBuffer states[3];
  uint8_t* codes[3];
  float inverse[3];  // 0: all codes are 0
};

/// Codes of 64 states of a map that is mirrored, or linear (`kIsLinear`).
template <bool kIsLinear>
NIBBLE_SIMD void encode_pending(const Encoder& encoder, const PendingBlock& block, int k, int64_t i) {
  const float* states = block.states[k].values + i;
  uint8_t* codes = block.codes[k] + i;
  if constexpr (kIsLinear) {
    encode_64(encoder.linear, encoder.search, states, block.inverse[k], codes);
  } else {
    encode_64(encoder.mirrored, states, block.inverse[k], codes, false);
    // A negative state never takes the code of zero but the one below.
    __mmask64 zeros = _mm512_cmpeq_epi8_mask(_mm512_loadu_si512(codes), _mm512_set1_epi8(kZeroCode));
    for (; __builtin_expect(zeros != 0, 0); zeros &= zeros - 1) {
      const int at = __builtin_ctzll(zeros);
      if (states[at] < 0) codes[at] = kZeroCode - 1;
    }
  }
}

template <typename Rule>
NIBBLE_SIMD void encode_pending(const Encoder& first, const Encoder& second, const PendingBlock& block, int64_t i) {
  encode_pending<false>(first, block, 0, i);
  if constexpr (Rule::kStates > 1) encode_pending<true>(second, block, 1, i);
  if constexpr (Rule::kStates > 2) encode_pending<false>(first, block, 2, i);
}

template <typename Rule>
[[gnu::noinline]] static void encode_block(const Encoder& first, const Encoder& second, const PendingBlock& block) {
  for (int64_t i = 0; i < kStateBlock; i += 64) encode_pending<Rule>(first, second, block, i);
}

/// Elements any of whose new states is not finite: their states become 0, their parameters stay.
template <typename Rule>
[[gnu::noinline]] static void keep_bad(const F32 (&old)[4], const F32 (&states)[3][4], F32 (&moved)[4],
                                       __m512i (&sizes)[3], PendingBlock& next, int64_t i) {
  for (int k = 0; k < Rule::kStates; ++k) sizes[k] = _mm512_setzero_si512();
  for (int q = 0; q < 4; ++q) {
    F32 s[3];
    for (int k = 0; k < Rule::kStates; ++k) s[k] = states[k][q];
    const Mask is_good = is_finite<Rule>(s);
    moved[q] = select(is_good, moved[q], old[q]);
    for (int k = 0; k < Rule::kStates; ++k) {
      s[k] = _mm512_maskz_mov_ps(is_good, s[k]);
      sizes[k] = _mm512_max_epi32(sizes[k], _mm512_castps_si512(abs(s[k])));
      store(next.states[k].values + i + 16 * q, s[k]);
    }
  }
}

/// step_block() for kStateBlock elements of type T whose old states are codes. The new ones go to `next`; those of
/// `pending` are encoded, unless it is null.
template <typename Rule, typename T, bool kEncodes>
[[gnu::noinline]] static void step_coded_block(const OptimizerScalars& shared, float rate, const CodedState (&coded)[3],
                                               T* p, const T* g, PendingBlock& next, float (&absmax)[3],
                                               const Encoder& first, const Encoder& second,
                                               const PendingBlock& pending) {
  const OptimizerScalars c = shared;
  const F32 down = set1(-rate), keep = set1(c.keep);
  __m512i largest[3] = {};
  for (int64_t i = 0; i < kStateBlock; i += 64) {
    F32 old[4], gradient[4], decoded[3][4], moved[4];
    load_64(p + i, old);
    load_64(g + i, gradient);
    NIBBLE_UNROLL
    for (int k = 0; k < Rule::kStates; ++k) decode_64(coded[k], i, decoded[k]);
    __m512i sizes[3] = {};  // as bits, which order finite ones below all others
    NIBBLE_UNROLL
    for (int q = 0; q < 4; ++q) {
      F32 s[3];
      NIBBLE_UNROLL
      for (int k = 0; k < Rule::kStates; ++k) s[k] = decoded[k][q];
      const F32 d = Rule::step(c, scaled_gradient<Rule>(c, old[q], gradient[q]), s);
      moved[q] = fused(down, d, old[q] * keep);
      NIBBLE_UNROLL
      for (int k = 0; k < Rule::kStates; ++k) {
        decoded[k][q] = s[k];
        sizes[k] = _mm512_max_epi32(sizes[k], _mm512_castps_si512(abs(s[k])));
        store(next.states[k].values + i + 16 * q, s[k]);
      }
    }
    __m512i widest = sizes[0];
    for (int k = 1; k < Rule::kStates; ++k) widest = _mm512_max_epi32(widest, sizes[k]);
    const __mmask16 bad = _mm512_cmpgt_epi32_mask(widest, _mm512_set1_epi32(0x7f7fffff));
    if (__builtin_expect(bad != 0, 0)) keep_bad<Rule>(old, decoded, moved, sizes, next, i);
    NIBBLE_UNROLL
    for (int k = 0; k < Rule::kStates; ++k) largest[k] = _mm512_max_epi32(largest[k], sizes[k]);
    if constexpr (kEncodes) encode_pending<Rule>(first, second, pending, i);
    store_64(p + i, moved);
  }
  NIBBLE_UNROLL
  for (int k = 0; k < Rule::kStates; ++k) absmax[k] = reduce_max(_mm512_castsi512_ps(largest[k]));
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA

#endif
