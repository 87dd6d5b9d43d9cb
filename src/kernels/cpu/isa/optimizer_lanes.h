// Whole blocks of an 8-bit optimizer step in AVX-512, a few at a time: a loop for each part, so that its tables stay in
// registers, with roots and divisions beside the search for codes.
#pragma once

#include "kernels/cpu/isa/dequantize_8bit_lanes.h"
#include "kernels/cpu/isa/encoder_8bit.h"
#include "kernels/cpu/isa/optimizer_block.h"

#if defined(__AVX512F__)

namespace nibble::kernels::cpu::NIBBLE_ISA {

template <typename T>
NIBBLE_SIMD void load_64(const T* x, F32 (&out)[4]) {
  NIBBLE_UNROLL
  for (int q = 0; q < 4; ++q) out[q] = load(x + 16 * q);
}
template <typename T>
NIBBLE_SIMD void store_64(T* x, const F32 (&values)[4]) {
  NIBBLE_UNROLL
  for (int q = 0; q < 4; ++q) store(x + 16 * q, values[q]);
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

/// How many elements ahead memory is asked for: not so many that what comes in takes the places, in the first cache, of
/// what is in use.
inline constexpr int64_t kAhead = 3 * kStateBlock;

/// Blocks that go through each loop together. One in fp32: more would ask the memory for too much at once.
inline constexpr int64_t kGroup = 2;
template <typename T>
inline constexpr int64_t kGroupOf = sizeof(T) == 2 ? kGroup : 1;

/// A state of a group of blocks.
struct GroupState {
  alignas(64) float values[kGroup * kStateBlock];
  uint8_t* codes;
  float absmax[kGroup];   // as stored
  float inverse[kGroup];  // 0: all codes of the block are 0
};

/// Values of 64 codes, in order.
template <typename Table>
NIBBLE_SIMD void decode_64(const Table& table, const uint8_t* codes, float absmax, F32 (&out)[4]) {
  look_up(table, in_look_up_order(_mm512_loadu_si512(codes)), out);
  NIBBLE_UNROLL
  for (int q = 0; q < 4; ++q) out[q] = out[q] * set1(absmax);
}

/// The codes of blocks without an absmax.
NIBBLE_SIMD void clear_codes(int64_t blocks, const GroupState& state) {
  for (int64_t b = 0; b < blocks; ++b)
    if (state.inverse[b] == 0) __builtin_memset(state.codes + b * kStateBlock, 0, kStateBlock);
}

/// 64 states times the inverse of their block's absmax. Zero is added: -0 has no sign to keep.
NIBBLE_SIMD void load_inverted(const GroupState& state, int64_t i, F32 (&y)[4]) {
  const F32 inverse = set1(state.inverse[i / kStateBlock]);
  NIBBLE_UNROLL
  for (int q = 0; q < 4; ++q) y[q] = fused(load(state.values + i + 16 * q), inverse, set1(0));
}

/// States of a mirrored map to their codes; beside(i) is done on the way.
template <typename Beside>
NIBBLE_SIMD void encode_group(const MirroredLanes& lanes, int64_t blocks, const GroupState& state, Beside&& beside) {
  uint8_t* const codes = state.codes;
  encode_values<false, true>(
      lanes, blocks * kStateBlock, [&](int64_t i, F32(&y)[4]) { load_inverted(state, i, y); },
      [&](int64_t i, __m512i found) {
        _mm512_storeu_si512(codes + i, found);
        beside(i);
      });
  clear_codes(blocks, state);
}
[[gnu::noinline]] static void encode_group(const MirroredLanes& shared, int64_t blocks, const GroupState& state) {
  const MirroredLanes lanes = shared;
  encode_group(lanes, blocks, state, [](int64_t) {});
}

/// Parameters of a group that stay as they are: of elements any of whose new states is not finite.
template <typename T>
struct KeptElements {
  uint64_t lanes[kGroup * kStateBlock / 64];
  T values[kGroup * kStateBlock];
  bool has_any;
};

/// What a group's parameters move by: parts of the quotient.
struct Ratios {
  alignas(64) float numerators[kGroup * kStateBlock];  // unless they are state 1
  alignas(64) float roots[kGroup * kStateBlock];
};

/// State 2, of a linear map, to its codes; finds roots on the way if the rule wants them.
template <typename Rule>
[[gnu::noinline]] static void encode_squares(const Encoder& encoder, int64_t blocks, const GroupState& state,
                                             Ratios& ratios) {
  for (int64_t b = 0; b < blocks; ++b) {
    const float* values = state.values + b * kStateBlock;
    float* roots = ratios.roots + b * kStateBlock;
    encode_elements(encoder.linear, encoder.search, values, kStateBlock, state.inverse[b],
                    state.codes + b * kStateBlock, [&](int64_t i) {
                      if constexpr (Rule::kRootOf == 1)
                        for (int q = 0; q < 4; ++q) store(roots + i + 16 * q, square_root(load(values + i + 16 * q)));
                    });
  }
}

/// Notes such elements of a block, whose new states become 0, and finds the largest sizes of the others.
template <typename Rule, typename T>
[[gnu::noinline]] static void keep_bad(const T* p, GroupState* const (&states)[3], int64_t begin, __m512i (&largest)[3],
                                       KeptElements<T>& kept) {
  if (!kept.has_any) __builtin_memset(kept.lanes, 0, sizeof kept.lanes);
  kept.has_any = true;
  __builtin_memcpy(kept.values + begin, p + begin, kStateBlock * sizeof(T));
  for (int k = 0; k < Rule::kStates; ++k) largest[k] = _mm512_setzero_si512();
  for (int64_t i = begin; i < begin + kStateBlock; i += 16) {
    F32 s[3];
    for (int k = 0; k < Rule::kStates; ++k) s[k] = load(states[k]->values + i);
    const Mask is_good = is_finite<Rule>(s);
    kept.lanes[i / 64] |= static_cast<uint64_t>(static_cast<uint16_t>(~is_good)) << (i % 64);
    for (int k = 0; k < Rule::kStates; ++k) {
      s[k] = _mm512_maskz_mov_ps(is_good, s[k]);
      largest[k] = _mm512_max_epi32(largest[k], _mm512_castps_si512(abs(s[k])));
      store(states[k]->values + i, s[k]);
    }
  }
}

template <typename T>
[[gnu::noinline]] static void put_back(const KeptElements<T>& kept, int64_t count, T* p) {
  for (int64_t i = 0; i < count; ++i)
    if (kept.lanes[i / 64] >> (i % 64) & 1) p[i] = kept.values[i];
}

/// Decodes and steps the states of the group's block that begins at `begin`.
template <typename Rule, typename T>
NIBBLE_SIMD void start_block(const OptimizerScalars& c, const MirroredTable& mirrored, const FloatTable& linear,
                             GroupState* const (&states)[3], int64_t begin, const T* p, const T* g, Ratios& ratios,
                             KeptElements<T>& kept) {
  __m512i largest[3] = {};  // sizes as bits, which order finite ones below all others
  for (int64_t i = begin; i < begin + kStateBlock; i += 64) {
    F32 old[4], gradient[4], s[3][4];
    prefetch_ahead(g + i, 64 * int64_t{sizeof(T)}, kAhead * int64_t{sizeof(T)});
    NIBBLE_UNROLL
    for (int k = 0; k < Rule::kStates; ++k) {
      const uint8_t* codes = states[k]->codes + i;
      const float absmax = states[k]->absmax[begin / kStateBlock];
      prefetch_ahead(codes, 64, kAhead);
      if (k == 1)
        decode_64(linear, codes, absmax, s[k]);
      else
        decode_64(mirrored, codes, absmax, s[k]);
    }
    if constexpr (Rule::kCouplesDecay) load_64(p + i, old);
    load_64(g + i, gradient);
    NIBBLE_UNROLL
    for (int q = 0; q < 4; ++q) {
      const int64_t at = i + 16 * q;
      F32 t[3] = {s[0][q], s[1][q], s[2][q]};
      const F32 numerator = Rule::start(c, scaled_gradient<Rule>(c, old[q], gradient[q]), t);
      if constexpr (!Rule::kMovesByState) store(ratios.numerators + at, numerator);
      NIBBLE_UNROLL
      for (int k = 0; k < Rule::kStates; ++k) {
        largest[k] = _mm512_max_epu32(largest[k], _mm512_castps_si512(k == 1 ? t[k] : abs(t[k])));  // squares: no sign
        store(states[k]->values + at, t[k]);
      }
    }
  }
  __m512i widest = largest[0];
  for (int k = 1; k < Rule::kStates; ++k) widest = _mm512_max_epu32(widest, largest[k]);
  if (__builtin_expect(_mm512_cmpgt_epu32_mask(widest, _mm512_set1_epi32(0x7f7fffff)) != 0, 0)) {
    __m512i found[3];  // not `largest` itself, which stays in registers
    keep_bad<Rule>(p, states, begin, found, kept);
    for (int k = 0; k < Rule::kStates; ++k) largest[k] = found[k];
  }
  NIBBLE_UNROLL
  for (int k = 0; k < Rule::kStates; ++k) {
    const float absmax = reduce_max(_mm512_castsi512_ps(largest[k]));
    const bool is_zero = absmax < 0x1p-126f;
    states[k]->absmax[begin / kStateBlock] = is_zero ? 0 : absmax;
    states[k]->inverse[begin / kStateBlock] = is_zero ? 0 : 1.0f / absmax;
  }
}

/// Steps the states of a group of blocks; sets what they are encoded with.
template <typename Rule, typename T>
[[gnu::noinline]] static void start_group(const OptimizerScalars& shared, const MirroredTable& mirrored,
                                          const FloatTable& linear, int64_t blocks, GroupState* const (&states)[3],
                                          const T* p, const T* g, Ratios& ratios, KeptElements<T>& kept) {
  const OptimizerScalars c = shared;
  const MirroredTable first = mirrored;
  const FloatTable second = linear;
  kept.has_any = false;
  for (int64_t at = 0; at < blocks * kStateBlock; at += kStateBlock)
    start_block<Rule, T>(c, first, second, states, at, p, g, ratios, kept);
}

/// Moves the parameters of a group; encodes its state 1, of a mirrored map, while the divider is busy.
template <typename Rule, typename T>
[[gnu::noinline]] static void finish_group(const OptimizerScalars& shared, float rate, const MirroredLanes& mirrored,
                                           int64_t blocks, const GroupState& state, const Ratios& ratios, T* p) {
  const OptimizerScalars c = shared;
  const MirroredLanes lanes = mirrored;
  const F32 down = set1(-rate), keep = set1(c.keep);
  const float* numerators = Rule::kMovesByState ? state.values : ratios.numerators;
  encode_group(lanes, blocks, state, [&](int64_t i) {
    F32 d[4], moved[4];
    prefetch_ahead(p + i, 64 * int64_t{sizeof(T)}, kAhead * int64_t{sizeof(T)});
    NIBBLE_UNROLL
    for (int q = 0; q < 4; ++q) {
      const int64_t at = i + 16 * q;
      const F32 numerator = load(numerators + at);
      if constexpr (Rule::kRootOf == kNoRoot)
        d[q] = Rule::finish(c, numerator, numerator);
      else
        d[q] = Rule::finish(c, numerator,
                            Rule::kRootOf == 1 ? load(ratios.roots + at) : square_root(load(state.values + at)));
    }
    load_64(p + i, moved);
    NIBBLE_UNROLL
    for (int q = 0; q < 4; ++q) moved[q] = fused(down, d[q], moved[q] * keep);
    store_64(p + i, moved);
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA

#endif
