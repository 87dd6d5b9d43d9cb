// Whole blocks of an 8-bit optimizer step in AVX2 and AVX-512, a few at a time: a loop for each part, so that its
// tables stay in registers, with roots and divisions beside the search for codes.
#pragma once

#include "kernels/cpu/isa/optimizer_block.h"
#include "kernels/cpu/isa/optimizer_codes.h"

#if defined(__AVX2__)

namespace nibble::kernels::cpu::NIBBLE_ISA {

template <typename T, int kVectors>
NIBBLE_SIMD void load_vectors(const T* x, F32 (&out)[kVectors]) {
  NIBBLE_UNROLL
  for (int q = 0; q < kVectors; ++q) out[q] = load(x + q * kLanes);
}
template <typename T>
NIBBLE_SIMD void store_vectors(T* x, const F32 (&values)[4]) {
  NIBBLE_UNROLL
  for (int q = 0; q < 4; ++q) store(x + q * kLanes, values[q]);
}
#if defined(__AVX512F__)
/// The processor's own rounding flushes denormals: those go the long way.
NIBBLE_SIMD void store_vectors(bf16_t* x, const F32 (&values)[4]) {
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
#else
/// NaN goes the long way.
NIBBLE_SIMD void store_vectors(bf16_t* x, const F32 (&values)[4]) {
  const __m256 nan[2] = {_mm256_cmp_ps(values[0], values[1], _CMP_UNORD_Q),
                         _mm256_cmp_ps(values[2], values[3], _CMP_UNORD_Q)};
  if (__builtin_expect(_mm256_movemask_ps(_mm256_or_ps(nan[0], nan[1])) != 0, 0)) {
    NIBBLE_UNROLL
    for (int q = 0; q < 4; ++q) store(x + 8 * q, values[q]);
    return;
  }
  __m256i halves[4];
  NIBBLE_UNROLL
  for (int q = 0; q < 4; ++q) {
    const __m256i bits = _mm256_castps_si256(values[q]);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    halves[q] = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
  }
  NIBBLE_UNROLL
  for (int q = 0; q < 4; q += 2) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(halves[q], halves[q + 1]), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(x + 8 * q), words);
  }
}
#endif

/// How many elements ahead memory is asked for: not so many that what comes in takes the places, in the first cache, of
/// what is in use.
inline constexpr int64_t kAhead = 3 * kStateBlock;

/// Blocks that go through each loop together: at the end of each, the processor waits for what it began. As many bytes
/// in fp32 as in 16 bits: more would ask the memory for too much at once.
inline constexpr int64_t kGroup = 4;
template <typename T>
inline constexpr int64_t kGroupOf = sizeof(T) == 2 ? kGroup : 2;

/// A state of a group of blocks.
struct GroupState {
  alignas(64) float values[kGroup * kStateBlock];
  uint8_t* codes;
  float absmax[kGroup];   // as stored
  float inverse[kGroup];  // 0: all codes of the block are 0
};

/// The codes of blocks without an absmax.
NIBBLE_SIMD void clear_codes(int64_t blocks, const GroupState& state) {
  for (int64_t b = 0; b < blocks; ++b)
    if (state.inverse[b] == 0) __builtin_memset(state.codes + b * kStateBlock, 0, kStateBlock);
}

/// States times the inverse of their block's absmax. Zero is added: -0 has no sign to keep.
NIBBLE_SIMD void load_inverted(const GroupState& state, int64_t i, F32 (&y)[4]) {
  const F32 inverse = set1(state.inverse[i / kStateBlock]);
  NIBBLE_UNROLL
  for (int q = 0; q < 4; ++q) y[q] = fused(load(state.values + i + q * kLanes), inverse, set1(0));
}

/// States of a mirrored map to their codes; beside(i) is done on the way.
template <typename Beside>
NIBBLE_SIMD void encode_group(const Encoder& encoder, int64_t blocks, const GroupState& state, Beside&& beside) {
  encode_signed(
      encoder, blocks * kStateBlock, state.codes, [&](int64_t i, F32(&y)[4]) { load_inverted(state, i, y); }, beside);
  clear_codes(blocks, state);
}
[[gnu::noinline]] static void encode_group(const Encoder& encoder, int64_t blocks, const GroupState& state) {
  encode_group(encoder, blocks, state, [](int64_t) {});
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
[[gnu::noinline]] static void encode_group_squares(const Encoder& encoder, int64_t blocks, const GroupState& state,
                                                   Ratios& ratios) {
  for (int64_t b = 0; b < blocks; ++b) {
    const float* values = state.values + b * kStateBlock;
    float* roots = ratios.roots + b * kStateBlock;
    encode_squares(encoder, values, kStateBlock, state.inverse[b], state.codes + b * kStateBlock, [&](int64_t i) {
      if constexpr (Rule::kRootOf == 1)
        for (int64_t at = i; at < i + kStep; at += kLanes) store(roots + at, square_root(load(values + at)));
    });
  }
}

/// Notes such elements of a block, whose new states become 0, and finds the largest sizes of the others.
template <typename Rule, typename T>
[[gnu::noinline]] static void keep_bad(const T* p, GroupState* const (&states)[3], int64_t begin, F32 (&largest)[3],
                                       KeptElements<T>& kept) {
  if (!kept.has_any) __builtin_memset(kept.lanes, 0, sizeof kept.lanes);
  kept.has_any = true;
  __builtin_memcpy(kept.values + begin, p + begin, kStateBlock * sizeof(T));
  for (int k = 0; k < Rule::kStates; ++k) largest[k] = set1(0);
  for (int64_t i = begin; i < begin + kStateBlock; i += kLanes) {
    F32 s[3];
    for (int k = 0; k < Rule::kStates; ++k) s[k] = load(states[k]->values + i);
    const Mask is_good = is_finite<Rule>(s);
    kept.lanes[i / 64] |= static_cast<uint64_t>(kAllLanes & ~lane_bits(is_good)) << (i % 64);
    for (int k = 0; k < Rule::kStates; ++k) {
      s[k] = select(is_good, s[k], set1(0));
      largest[k] = max(largest[k], abs(s[k]));
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
NIBBLE_SIMD void start_block(const OptimizerScalars& c, const SignedTable& signed_table,
                             const SquareTable& square_table, GroupState* const (&states)[3], int64_t begin, const T* p,
                             const T* g, Ratios& ratios, KeptElements<T>& kept) {
  constexpr int kVectors = kDecodeStep / kLanes;
  F32 largest[3] = {set1(0), set1(0), set1(0)};  // by bits, which order finite sizes below all others
  const uint8_t* codes[3];                       // stores cannot change these
  float* values[3];
  F32 absmax[3];
  for (int k = 0; k < Rule::kStates; ++k) {
    codes[k] = states[k]->codes;
    values[k] = states[k]->values;
    absmax[k] = set1(states[k]->absmax[begin / kStateBlock]);
  }
  for (int64_t i = begin; i < begin + kStateBlock; i += kDecodeStep) {
    F32 old[kVectors], gradient[kVectors], s[3][kVectors];
    prefetch_ahead(g + i, kDecodeStep * int64_t{sizeof(T)}, kAhead * int64_t{sizeof(T)});
    NIBBLE_UNROLL
    for (int k = 0; k < Rule::kStates; ++k) {
      prefetch_ahead(codes[k] + i, kDecodeStep, kAhead);
      if (k == 1)
        decode(square_table, codes[k] + i, absmax[k], s[k]);
      else
        decode(signed_table, codes[k] + i, absmax[k], s[k]);
    }
    if constexpr (Rule::kCouplesDecay) load_vectors(p + i, old);
    load_vectors(g + i, gradient);
    NIBBLE_UNROLL
    for (int q = 0; q < kVectors; ++q) {
      const int64_t at = i + q * kLanes;
      F32 t[3] = {s[0][q], s[1][q], s[2][q]};
      const F32 numerator = Rule::start(c, scaled_gradient<Rule>(c, old[q], gradient[q]), t);
      if constexpr (!Rule::kMovesByState) store(ratios.numerators + at, numerator);
      NIBBLE_UNROLL
      for (int k = 0; k < Rule::kStates; ++k) {
        largest[k] = max_bits(largest[k], k == 1 ? t[k] : abs(t[k]));  // squares: no sign
        store(values[k] + at, t[k]);
      }
    }
  }
  F32 widest = largest[0];
  for (int k = 1; k < Rule::kStates; ++k) widest = max_bits(widest, largest[k]);
  if (__builtin_expect(lane_bits(greater(set1(__builtin_inff()), widest)) != kAllLanes, 0)) {
    F32 found[3];  // not `largest` itself, which stays in registers
    keep_bad<Rule>(p, states, begin, found, kept);
    for (int k = 0; k < Rule::kStates; ++k) largest[k] = found[k];
  }
  NIBBLE_UNROLL
  for (int k = 0; k < Rule::kStates; ++k) {
    const float found = reduce_max(largest[k]);
    const bool is_zero = found < 0x1p-126f;
    states[k]->absmax[begin / kStateBlock] = is_zero ? 0 : found;
    states[k]->inverse[begin / kStateBlock] = is_zero ? 0 : 1.0f / found;
  }
}

/// Steps the states of a group of blocks; sets what they are encoded with.
template <typename Rule, typename T>
[[gnu::noinline]] static void start_group(const OptimizerScalars& shared, const SignedTable& signed_table,
                                          const SquareTable& square_table, int64_t blocks,
                                          GroupState* const (&states)[3], const T* p, const T* g, Ratios& ratios,
                                          KeptElements<T>& kept) {
  const OptimizerScalars c = shared;
  const SignedTable first = signed_table;
  const SquareTable second = square_table;
  kept.has_any = false;
  for (int64_t at = 0; at < blocks * kStateBlock; at += kStateBlock)
    start_block<Rule, T>(c, first, second, states, at, p, g, ratios, kept);
}

/// Moves the parameters of a group; encodes its state 1, of a mirrored map, while the divider is busy.
template <typename Rule, typename T>
[[gnu::noinline]] static void finish_group(const OptimizerScalars& shared, float rate, const Encoder& encoder,
                                           int64_t blocks, const GroupState& state, const Ratios& ratios, T* p) {
  const OptimizerScalars c = shared;
  const F32 down = set1(-rate), keep = set1(c.keep);
  const float* numerators = Rule::kMovesByState ? state.values : ratios.numerators;
  encode_group(encoder, blocks, state, [&](int64_t i) {
    F32 d[4], moved[4];
    prefetch_ahead(p + i, kStep * int64_t{sizeof(T)}, kAhead * int64_t{sizeof(T)});
    NIBBLE_UNROLL
    for (int q = 0; q < 4; ++q) {
      const int64_t at = i + q * kLanes;
      const F32 numerator = load(numerators + at);
      if constexpr (Rule::kRootOf == kNoRoot)
        d[q] = Rule::finish(c, numerator, numerator);
      else
        d[q] = Rule::finish(c, numerator,
                            Rule::kRootOf == 1 ? load(ratios.roots + at) : square_root(load(state.values + at)));
    }
    load_vectors(p + i, moved);
    NIBBLE_UNROLL
    for (int q = 0; q < 4; ++q) moved[q] = fused(down, d[q], moved[q] * keep);
    store_vectors(p + i, moved);
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA

#endif
