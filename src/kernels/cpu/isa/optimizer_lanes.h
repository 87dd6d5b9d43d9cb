// Whole blocks of an 8-bit optimizer step in AVX-512, a few at a time: a loop for each part, so that its tables stay in
// registers, and codes of the second state found while the divider is busy with the next blocks.
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

/// How many elements ahead memory is asked for.
inline constexpr int64_t kAhead = 8 * kStateBlock;

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

/// The states of `blocks` blocks, as fp32. A function of its own, with a table of its own: it stays in registers.
[[gnu::noinline]] static void decode_group(const FloatTable& shared, int64_t blocks, GroupState& state) {
  const FloatTable table = shared;
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  for (int64_t i = 0; i < blocks * kStateBlock; i += 64) {
    const F32 scale = set1(state.absmax[i / kStateBlock]);
    F32 decoded[4];
    prefetch_ahead(state.codes + i, 64, kAhead);
    look_up(table, _mm512_permutexvar_epi32(order, _mm512_loadu_si512(state.codes + i)), decoded);
    NIBBLE_UNROLL
    for (int q = 0; q < 4; ++q) store(state.values + i + 16 * q, decoded[q] * scale);
  }
}

/// States of a mirrored map to their codes; negative ones never take the code of zero but the one below.
[[gnu::noinline]] static void encode_group(const MirroredLanes& shared, int64_t blocks, const GroupState& state) {
  const MirroredLanes lanes = shared;
  for (int64_t i = 0; i < blocks * kStateBlock; i += 64) {
    const F32 scale = set1(state.inverse[i / kStateBlock]);
    F32 y[4];
    NIBBLE_UNROLL
    for (int q = 0; q < 4; ++q) y[q] = load(state.values + i + 16 * q) * scale;
    const MirroredCells cells = find_cells<false>(lanes, y);
    const __m512i steps = count_steps<false>(lanes, cells, y);
    _mm512_storeu_si512(state.codes + i, codes_of(lanes, steps, cells.is_negative));
    const __mmask64 zeros = _mm512_mask_testn_epi8_mask(cells.is_negative, steps, steps);
    if (__builtin_expect(zeros != 0, 0))
      for (int64_t at = i; at < i + 64; ++at)
        if (state.values[at] < 0 && state.codes[at] == kZeroCode) state.codes[at] = kZeroCode - 1;
  }
  for (int64_t b = 0; b < blocks; ++b)
    if (state.inverse[b] == 0) __builtin_memset(state.codes + b * kStateBlock, 0, kStateBlock);
}

/// States of a linear map to their codes, from block `first` on.
[[gnu::noinline]] static void encode_group(const Encoder& encoder, int64_t first, int64_t blocks,
                                           const GroupState& state) {
  for (int64_t b = first, i = b * kStateBlock; b < blocks; ++b, i += kStateBlock)
    encode_run(encoder.linear, encoder.search, state.values + i, kStateBlock, state.inverse[b], state.codes + i);
}

/// Parameters of a block that stay as they are: of elements any of whose new states is not finite.
template <typename T>
struct KeptElements {
  uint64_t lanes[kStateBlock / 64] = {};
  T values[kStateBlock];
  bool has_any = false;
};

/// Notes such elements among 64, whose new states become 0.
template <typename Rule, typename T>
[[gnu::noinline]] static void keep_bad(const T* p, GroupState* const (&states)[3], int64_t begin, int64_t i,
                                       __m512i (&sizes)[3], KeptElements<T>& kept) {
  kept.has_any = true;
  __builtin_memcpy(kept.values + i, p + i, 64 * sizeof(T));
  for (int k = 0; k < Rule::kStates; ++k) sizes[k] = _mm512_setzero_si512();
  for (int q = 0; q < 4; ++q) {
    F32 s[3];
    for (int k = 0; k < Rule::kStates; ++k) s[k] = load(states[k]->values + begin + i + 16 * q);
    const Mask is_good = is_finite<Rule>(s);
    kept.lanes[i / 64] |= static_cast<uint64_t>(static_cast<uint16_t>(~is_good)) << (16 * q);
    for (int k = 0; k < Rule::kStates; ++k) {
      s[k] = _mm512_maskz_mov_ps(is_good, s[k]);
      sizes[k] = _mm512_max_epi32(sizes[k], _mm512_castps_si512(abs(s[k])));
      store(states[k]->values + begin + i + 16 * q, s[k]);
    }
  }
}

template <typename T>
[[gnu::noinline]] static void put_back(const KeptElements<T>& kept, T* p) {
  for (int64_t i = 0; i < kStateBlock; ++i)
    if (kept.lanes[i / 64] >> (i % 64) & 1) p[i] = kept.values[i];
}

/// Fixes a value's place in the order of instructions.
NIBBLE_SIMD void pin(F32& x) { asm volatile("" : "+v"(x)); }

/// Moves 64 parameters by d.
template <typename T>
NIBBLE_SIMD void move_64(T* p, F32 down, F32 keep, const F32 (&d)[4]) {
  F32 moved[4];
  load_64(p, moved);
  NIBBLE_UNROLL
  for (int q = 0; q < 4; ++q) moved[q] = fused(down, d[q], moved[q] * keep);
  store_64(p, moved);
}

/// step_block() for the block of a group that begins at `begin`, of type T; kEncodes: state 2 of the same block of the
/// group before is encoded beside it. The processor looks some 150 instructions ahead, less than a root and a division
/// take: each is asked for long before it is needed, with other work between.
template <typename Rule, typename T, bool kEncodes>
NIBBLE_SIMD void step_whole_block(const OptimizerScalars& c, F32 down, const LinearLanes& lanes,
                                  const CodeSearch& search, GroupState* const (&states)[3], const GroupState* pending,
                                  int64_t begin, T* p, const T* g) {
  const F32 keep = set1(c.keep);
  __m512i largest[3] = {};
  KeptElements<T> kept;
  F32 d[4];  // of the 64 elements before these
  for (int64_t i = 0; i < kStateBlock; i += 64) {
    F32 old[4], gradient[4];
    Ratio ratio[4];
    __m512i found[4];
    prefetch_ahead(p + i, 64 * int64_t{sizeof(T)}, kAhead * int64_t{sizeof(T)});
    prefetch_ahead(g + i, 64 * int64_t{sizeof(T)}, kAhead * int64_t{sizeof(T)});
    if constexpr (Rule::kCouplesDecay) load_64(p + i, old);
    load_64(g + i, gradient);
    __m512i sizes[3] = {};  // as bits, which order finite ones below all others
    NIBBLE_UNROLL
    for (int q = 0; q < 4; ++q) {
      const int64_t at = begin + i + 16 * q;
      F32 s[3];
      NIBBLE_UNROLL
      for (int k = 0; k < Rule::kStates; ++k) s[k] = load(states[k]->values + at);
      ratio[q] = Rule::start(c, scaled_gradient<Rule>(c, old[q], gradient[q]), s);
      pin(ratio[q].root);
      NIBBLE_UNROLL
      for (int k = 0; k < Rule::kStates; ++k) {
        sizes[k] = _mm512_max_epu32(sizes[k], _mm512_castps_si512(k == 1 ? s[k] : abs(s[k])));  // squares: no sign
        store(states[k]->values + at, s[k]);
      }
      if constexpr (kEncodes)
        found[q] = fixed_codes(lanes, load(pending->values + at) * set1(pending->inverse[begin / kStateBlock]));
      if (q == 0 && i > 0) move_64(p + i - 64, down, keep, d);
      if (q > 0) {
        d[q - 1] = Rule::finish(c, ratio[q - 1]);
        pin(d[q - 1]);
      }
    }
    if constexpr (kEncodes)
      settle_codes(lanes, search, pending->values + begin + i, pending->inverse[begin / kStateBlock], found,
                   pending->codes + begin + i);
    d[3] = Rule::finish(c, ratio[3]);
    pin(d[3]);
    __m512i widest = sizes[0];
    for (int k = 1; k < Rule::kStates; ++k) widest = _mm512_max_epu32(widest, sizes[k]);
    const __mmask16 bad = _mm512_cmpgt_epu32_mask(widest, _mm512_set1_epi32(0x7f7fffff));
    if (__builtin_expect(bad != 0, 0)) keep_bad<Rule>(p, states, begin, i, sizes, kept);
    NIBBLE_UNROLL
    for (int k = 0; k < Rule::kStates; ++k) largest[k] = _mm512_max_epi32(largest[k], sizes[k]);
  }
  move_64(p + kStateBlock - 64, down, keep, d);
  if (__builtin_expect(kept.has_any, 0)) put_back(kept, p);
  NIBBLE_UNROLL
  for (int k = 0; k < Rule::kStates; ++k) {
    const float absmax = reduce_max(_mm512_castsi512_ps(largest[k]));
    const bool is_zero = absmax < 0x1p-126f;
    states[k]->absmax[begin / kStateBlock] = is_zero ? 0 : absmax;
    states[k]->inverse[begin / kStateBlock] = is_zero ? 0 : 1.0f / absmax;
  }
}

/// A group of blocks from p and g on; sets what their states are encoded with.
template <typename Rule, typename T, bool kEncodes>
[[gnu::noinline]] static void step_group(const OptimizerScalars& shared, float rate, const Encoder& encoder,
                                         int64_t blocks, GroupState* const (&states)[3], const GroupState* pending,
                                         T* p, const T* g) {
  const OptimizerScalars c = shared;
  const LinearLanes lanes = encoder.linear;
  for (int64_t at = 0; at < blocks * kStateBlock; at += kStateBlock)
    step_whole_block<Rule, T, kEncodes>(c, set1(-rate), lanes, encoder.search, states, pending, at, p + at, g + at);
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA

#endif
