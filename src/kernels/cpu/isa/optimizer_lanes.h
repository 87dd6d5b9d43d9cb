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
/// Lanes of 64 elements of type T.
template <typename T>
using OrderOf = LaneOrder<sizeof(T) == 2>;

NIBBLE_SIMD void load_64(const bf16_t* x, F32 (&out)[4]) {
  NIBBLE_UNROLL
  for (int i = 0; i < 2; ++i) {
    const __m512i pairs = _mm512_loadu_si512(x + 32 * i);
    out[2 * i] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    out[2 * i + 1] = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)));
  }
}
[[gnu::noinline]] static void store_with_denormals(bf16_t* x, const F32 (&values)[4]) {
  alignas(64) float all[64];
  store_64(all, values);
  for (int e = 0; e < 64; ++e) x[e] = from_float<bf16_t>(all[OrderOf<bf16_t>::place_of(e)]);
}
/// The processor's own rounding flushes denormals, so that what has no exponent then goes the long way.
NIBBLE_SIMD void store_64(bf16_t* x, const F32 (&values)[4]) {
  alignas(64) static constexpr uint16_t kTurns[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i turns = _mm512_load_si512(kTurns), exponent = _mm512_set1_epi16(0x7f80);
  const __m512i low = round_normal_bf16(values[0], values[1]), high = round_normal_bf16(values[2], values[3]);
  const __mmask32 small = _kor_mask32(_mm512_testn_epi16_mask(low, exponent), _mm512_testn_epi16_mask(high, exponent));
  if (__builtin_expect(small != 0, 0)) return store_with_denormals(x, values);
  _mm512_storeu_si512(x, _mm512_permutexvar_epi16(turns, low));
  _mm512_storeu_si512(x + 32, _mm512_permutexvar_epi16(turns, high));
}

/// A mirrored map by distance from the code of zero: entry 0 is that of 128 steps, and zero is not in it.
struct MirroredTable {
  __m512i planes[4][2];
};

NIBBLE_SIMD MirroredTable load_mirrored_table(const float* book) {
  uint8_t bytes[4][128];
  for (int steps = 0; steps < 128; ++steps) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, book[steps == 0 ? 255 : kZeroCode + steps]);
    for (int plane = 0; plane < 4; ++plane) bytes[plane][steps] = static_cast<uint8_t>(bits >> (8 * plane));
  }
  MirroredTable table;
  for (int plane = 0; plane < 4; ++plane)
    for (int half = 0; half < 2; ++half) table.planes[plane][half] = _mm512_loadu_si512(bytes[plane] + 64 * half);
  return table;
}

/// As look_up() of a FloatTable.
NIBBLE_SIMD void look_up(const MirroredTable& table, __m512i codes, F32 (&out)[4]) {
  const __m512i zero = _mm512_set1_epi8(kZeroCode), off = _mm512_sub_epi8(codes, zero), steps = _mm512_abs_epi8(off);
  const __mmask64 some = _mm512_test_epi8_mask(off, off), negative = _mm512_cmplt_epu8_mask(codes, zero);
  __m512i b[4];
  NIBBLE_UNROLL
  for (int plane = 0; plane < 4; ++plane)
    b[plane] = _mm512_maskz_permutex2var_epi8(some, table.planes[plane][0], steps, table.planes[plane][1]);
  b[3] = _mm512_mask_add_epi8(b[3], negative, b[3], _mm512_set1_epi8(-128));
  unpack_planes(b, out);
}

/// Codes of one state of a block, and what it is decoded with.
template <typename Table>
struct CodedState {
  const Table* table;
  const uint8_t* codes;
  float absmax;
};

/// 64 states as `Order` says.
template <typename Order, typename Table>
NIBBLE_SIMD void decode_64(const CodedState<Table>& state, int64_t i, F32 (&out)[4]) {
  static constexpr BytePermutation kSpread = Order::spread();
  look_up(*state.table, _mm512_permutexvar_epi8(_mm512_load_si512(kSpread.from), _mm512_loadu_si512(state.codes + i)),
          out);
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
template <bool kIsLinear, typename Order>
NIBBLE_SIMD void encode_pending(const Encoder& encoder, const PendingBlock& block, int k, int64_t i) {
  const float* states = block.states[k].values + i;
  uint8_t* codes = block.codes[k] + i;
  if constexpr (kIsLinear) {
    encode_64<Order>(encoder.linear, encoder.search, states, block.inverse[k], codes);
  } else {
    encode_64<Order>(encoder.mirrored, states, block.inverse[k], codes, false);
    // A negative state never takes the code of zero but the one below.
    __mmask64 zeros = _mm512_cmpeq_epi8_mask(_mm512_loadu_si512(codes), _mm512_set1_epi8(kZeroCode));
    for (; __builtin_expect(zeros != 0, 0); zeros &= zeros - 1) {
      const int at = __builtin_ctzll(zeros);
      if (states[Order::place_of(at)] < 0) codes[at] = kZeroCode - 1;
    }
  }
}

template <typename Rule, typename Order>
NIBBLE_SIMD void encode_pending(const Encoder& first, const Encoder& second, const PendingBlock& block, int64_t i) {
  encode_pending<false, Order>(first, block, 0, i);
  if constexpr (Rule::kStates > 1) encode_pending<true, Order>(second, block, 1, i);
  if constexpr (Rule::kStates > 2) encode_pending<false, Order>(first, block, 2, i);
}

template <typename Rule, typename Order>
[[gnu::noinline]] static void encode_block(const Encoder& first, const Encoder& second, const PendingBlock& block) {
  for (int64_t i = 0; i < kStateBlock; i += 64) encode_pending<Rule, Order>(first, second, block, i);
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

/// A block's states: the first and third of a mirrored map, the second of any.
struct CodedBlock {
  CodedState<MirroredTable> first[2];
  CodedState<FloatTable> second;
};

/// step_block() for kStateBlock elements of type T whose old states are codes. The new ones go to `next`; those of
/// `pending` are encoded, unless it is null.
template <typename Rule, typename T, bool kEncodes>
[[gnu::noinline]] static void step_coded_block(const OptimizerScalars& shared, float rate, const CodedBlock& coded,
                                               T* p, const T* g, PendingBlock& next, float (&absmax)[3],
                                               const Encoder& first, const Encoder& second,
                                               const PendingBlock& pending) {
  using Order = OrderOf<T>;
  const OptimizerScalars c = shared;
  const F32 down = set1(-rate), keep = set1(c.keep);
  __m512i largest[3] = {};
  for (int64_t i = 0; i < kStateBlock; i += 64) {
    F32 old[4], gradient[4], decoded[3][4], moved[4];
    load_64(p + i, old);
    load_64(g + i, gradient);
    NIBBLE_UNROLL
    for (int k = 0; k < Rule::kStates; ++k) {
      if (k == 1)
        decode_64<Order>(coded.second, i, decoded[k]);
      else
        decode_64<Order>(coded.first[k / 2], i, decoded[k]);
    }
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
    if constexpr (kEncodes) encode_pending<Rule, Order>(first, second, pending, i);
    store_64(p + i, moved);
  }
  NIBBLE_UNROLL
  for (int k = 0; k < Rule::kStates; ++k) absmax[k] = reduce_max(_mm512_castsi512_ps(largest[k]));
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA

#endif
