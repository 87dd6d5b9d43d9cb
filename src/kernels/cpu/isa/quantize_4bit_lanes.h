// The inner loop of quantize_4bit: codes of 64 finite elements at a time, for each instruction set.
//
// encode_64(encoder, x, a, b, packed, streamed) scales the first 32 elements by a and the others by b (two blocks of
// 32, or halves of one) and writes 32 bytes.
#pragma once

#include "kernels/cpu/isa/code_cells.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

#if defined(__AVX512F__)

/// The cell of y by one rounding down, its threshold by one look-up of 32 floats, its code by one look-up of 64 bytes.
struct LaneEncoder {
  __m512 thresholds[2];  // of cells 0 .. 15 and 16 .. 31
  __m512i codes;         // by cell | (past its threshold) * 32, bit 5 inverted in the negative cells 16 .. 31
};

NIBBLE_SIMD LaneEncoder make_lane_encoder(const quant::CodeBook4Bit&, const CodeCells& cells) {
  uint8_t codes[64];
  for (int cell = 0; cell < 32; ++cell)
    for (int past = 0; past < 64; past += 32) codes[cell | (cell < 16 ? past : 32 - past)] = cells.code[cell | past];
  return {{load(cells.threshold), load(cells.threshold + 16)}, _mm512_loadu_si512(codes)};
}

/// Cell, sign-extended, with bit 5 flipped where y is past the cell's threshold.
NIBBLE_SIMD __m512i place(const LaneEncoder& encoder, __m512 y) {
  const __m512i cell =
      _mm512_cvt_roundps_epi32(_mm512_mul_ps(y, set1(kCellsPerUnit)), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  const __m512 threshold = _mm512_permutex2var_ps(encoder.thresholds[0], cell, encoder.thresholds[1]);
  return _mm512_mask_xor_epi32(cell, greater(y, threshold), cell, _mm512_set1_epi32(32));
}

/// Bytes (even, odd) hold a pair of places; the nibbles of word `order[i]` become byte i.
NIBBLE_SIMD void store_pairs(const LaneEncoder& encoder, __m512i places, __m256i order, uint8_t* packed,
                             bool streamed) {
  const __m512i codes = _mm512_permutexvar_epi8(places, encoder.codes);
  const __m512i bytes = _mm512_maddubs_epi16(codes, _mm512_set1_epi16(0x0110));
  const __m512i ordered = _mm512_permutexvar_epi8(_mm512_castsi256_si512(order), bytes);
  store_bytes(packed, _mm512_castsi512_si256(ordered), streamed);
}

template <typename T>
NIBBLE_SIMD void encode_64(const LaneEncoder& encoder, const T* x, float a, float b, uint8_t* packed, bool streamed) {
  const F32 first = set1(a), second = set1(b);
  const __m512i low = _mm512_packs_epi32(place(encoder, load(x) * first), place(encoder, load(x + 16) * first));
  const __m512i high = _mm512_packs_epi32(place(encoder, load(x + 32) * second), place(encoder, load(x + 48) * second));
  // Lane l of the packed bytes holds elements 4 l .. of each of the four vectors.
  const __m256i order = _mm256_setr_epi8(0, 2, 16, 18, 32, 34, 48, 50, 4, 6, 20, 22, 36, 38, 52, 54, 8, 10, 24, 26, 40,
                                         42, 56, 58, 12, 14, 28, 30, 44, 46, 60, 62);
  store_pairs(encoder, _mm512_packs_epi16(low, high), order, packed, streamed);
}

/// Even elements lie in the low halves of the dwords, odd ones in the high halves: no unpacking.
NIBBLE_SIMD void encode_64(const LaneEncoder& encoder, const bf16_t* x, float a, float b, uint8_t* packed,
                           bool streamed) {
  __m512i even[2], odd[2];
  for (int i = 0; i < 2; ++i) {
    const F32 scale = set1(i ? b : a);
    const __m512i pairs = _mm512_loadu_si512(x + 32 * i);
    const __m512 high = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)));
    even[i] = place(encoder, _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)) * scale);
    odd[i] = place(encoder, high * scale);
  }
  const __m512i evens = _mm512_packs_epi32(even[0], even[1]);
  const __m512i odds = _mm512_slli_epi16(_mm512_packs_epi32(odd[0], odd[1]), 8);
  const __m512i pairs = _mm512_ternarylogic_epi32(evens, odds, _mm512_set1_epi16(0xff), 0xe4);  // mask ? evens : odds
  // Word 8 l + j is pair 4 l + j of the first half, word 8 l + 4 + j of the second.
  const __m256i order = _mm256_setr_epi8(0, 2, 4, 6, 16, 18, 20, 22, 32, 34, 36, 38, 48, 50, 52, 54, 8, 10, 12, 14, 24,
                                         26, 28, 30, 40, 42, 44, 46, 56, 58, 60, 62);
  store_pairs(encoder, pairs, order, packed, streamed);
}

#elif defined(__AVX2__)

/// Four comparisons, each against the threshold that the ones before chose.
struct LaneEncoder {
  __m256 first, second[2];  // thresholds 7; 3 and 11
  __m256 third, fourth;     // by the bits found so far: 1, 5, 9, 13 at 0, 2, 4, 6; all even ones
  __m256i codes;            // by rank, twice
};

NIBBLE_SIMD LaneEncoder make_lane_encoder(const quant::CodeBook4Bit& book, const CodeCells&) {
  const float* t = reinterpret_cast<const float*>(&book.thresholds);
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(&book.code_of_rank));
  return {set1(t[7]),
          {set1(t[3]), set1(t[11])},
          _mm256_setr_ps(t[1], t[1], t[5], t[5], t[9], t[9], t[13], t[13]),
          _mm256_setr_ps(t[0], t[2], t[4], t[6], t[8], t[10], t[12], t[14]),
          _mm256_broadcastsi128_si256(codes)};
}

/// Number of thresholds below y.
NIBBLE_SIMD __m256i rank_of(const LaneEncoder& e, __m256 y) {
  const __m256 m1 = greater(y, e.first);
  const __m256 m2 = greater(y, _mm256_blendv_ps(e.second[0], e.second[1], m1));
  const __m256i bit2 = _mm256_and_si256(_mm256_castps_si256(m1), _mm256_set1_epi32(4));
  const __m256i bit1 = _mm256_and_si256(_mm256_castps_si256(m2), _mm256_set1_epi32(2));
  const __m256i two = _mm256_or_si256(bit2, bit1);
  const __m256 m3 = greater(y, _mm256_permutevar8x32_ps(e.third, two));
  const __m256i three = _mm256_sub_epi32(two, _mm256_castps_si256(m3));
  const __m256 m4 = greater(y, _mm256_permutevar8x32_ps(e.fourth, three));
  return _mm256_sub_epi32(_mm256_add_epi32(three, three), _mm256_castps_si256(m4));
}

template <typename T>
NIBBLE_SIMD void encode_32(const LaneEncoder& e, const T* x, F32 scale, uint8_t* packed) {
  const __m256i low = _mm256_packs_epi32(rank_of(e, load(x) * scale), rank_of(e, load(x + 8) * scale));
  const __m256i high = _mm256_packs_epi32(rank_of(e, load(x + 16) * scale), rank_of(e, load(x + 24) * scale));
  const __m256i codes = _mm256_shuffle_epi8(e.codes, _mm256_packs_epi16(low, high));
  const __m256i bytes = _mm256_maddubs_epi16(codes, _mm256_set1_epi16(0x0110));
  // Each half holds two bytes of each of the four vectors.
  const __m128i first = _mm256_castsi256_si128(bytes), second = _mm256_extracti128_si256(bytes, 1);
  const __m128i halves = _mm_packus_epi16(first, second);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(packed), _mm_unpacklo_epi16(halves, _mm_unpackhi_epi64(halves, halves)));
}

template <typename T>
NIBBLE_SIMD void encode_64(const LaneEncoder& e, const T* x, float a, float b, uint8_t* packed, bool) {
  encode_32(e, x, set1(a), packed);
  encode_32(e, x + 32, set1(b), packed + 16);
}

#else

struct LaneEncoder {
  F32 thresholds[15];
  uint8_t codes[16];  // by rank
};

NIBBLE_SIMD LaneEncoder make_lane_encoder(const quant::CodeBook4Bit& book, const CodeCells&) {
  LaneEncoder encoder;
  const float* thresholds = reinterpret_cast<const float*>(&book.thresholds);
  for (int i = 0; i < 15; ++i) encoder.thresholds[i] = set1(thresholds[i]);
  __builtin_memcpy(encoder.codes, &book.code_of_rank, sizeof encoder.codes);
  return encoder;
}

template <typename T>
NIBBLE_SIMD void encode_64(const LaneEncoder& encoder, const T* x, float a, float b, uint8_t* packed, bool) {
  for (int i = 0; i < 64; i += 4) {
    const F32 y = load(x + i) * set1(i < 32 ? a : b);
    Mask rank = {};
    for (int t = 0; t < 15; ++t) rank -= y > encoder.thresholds[t];
    const uint8_t* codes = encoder.codes;
    packed[i / 2] = static_cast<uint8_t>(codes[rank[0]] << 4 | codes[rank[1]]);
    packed[i / 2 + 1] = static_cast<uint8_t>(codes[rank[2]] << 4 | codes[rank[3]]);
  }
}

#endif

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
