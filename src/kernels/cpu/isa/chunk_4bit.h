// Codes to values in registers: how an instruction set expands a chunk of packed bytes, and the order of x that it
// needs.
//
// A chunk is one vector of bytes, expanded in kParts steps. Part t of a chunk of x holds the values that meet part t of
// the codes, so that nothing is shuffled in the loop. Four lanes hold the products of 32 consecutive codes: a block is
// a run of lanes.
#pragma once

#include "kernels/cpu/isa/vector.h"

#if defined(NIBBLE_AVX512) || defined(NIBBLE_AVX2)
#define NIBBLE_HAS_CHUNKS 1

namespace nibble::kernels::cpu::NIBBLE_ISA {

inline constexpr int64_t kChunkCodes = kLanes * 8;

/// bf16 code books are scaled by a factor that makes their values nearly exact; absmax is divided by it.
/// NF4: the factor in [1, 2) of least mean square error (half of what rounding each weight costs). FP4: exact.
NIBBLE_INLINE float bf16_code_book_scale(const float* code_book) {
  if (code_book[1] == -0.6961928009986877f) return 1.436715f;
  if (code_book[1] == 0.0052083334885537624f) return 12.0f;
  return 1.0f;
}

#if defined(NIBBLE_AVX512)

using Bytes = __m512i;
NIBBLE_INLINE Bytes load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
NIBBLE_INLINE Bytes load_bytes(const uint8_t* p, int64_t lanes) {
  return _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << lanes) - 1), p);
}

/// The scales of a chunk's lanes, from those of the blocks of its row; log2(block) is `shift`, `last` the last block.
struct ScalesOf32 {
  NIBBLE_INLINE static __m512 at(const float* scales, int64_t chunk, int, int64_t last) {
    const float* s = scales + chunk * 4;
    const int64_t end = last - chunk * 4;
    __m512 v = _mm512_set1_ps(s[0]);
    v = _mm512_mask_blend_ps(0x00f0, v, _mm512_set1_ps(s[end < 1 ? end : 1]));
    v = _mm512_mask_blend_ps(0x0f00, v, _mm512_set1_ps(s[end < 2 ? end : 2]));
    return _mm512_mask_blend_ps(0xf000, v, _mm512_set1_ps(s[end < 3 ? end : 3]));
  }
};
struct ScalesOf64 {  // and more
  NIBBLE_INLINE static __m512 at(const float* scales, int64_t chunk, int shift, int64_t last) {
    const int64_t first = chunk * kChunkCodes >> shift, second = (chunk * kChunkCodes + 64) >> shift;
    return _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(scales[first]),
                                _mm512_set1_ps(scales[second < last ? second : last]));
  }
};
/// A dword holds 8 codes; a permutation reads the low 4 bits of its index, so part t only shifts by 4t.
struct ChunkF32 {
  using Element = float;
  static constexpr int kParts = 8;
  static constexpr int64_t kPartElements = 16;
  __m512 table;

  explicit ChunkF32(const float* code_book) : table(_mm512_loadu_ps(code_book)) {}
  static float absmax_scale(const float*) { return 1; }
  /// Which code of its chunk meets element i of part t.
  NIBBLE_INLINE static int64_t code_of(int t, int64_t i) { return 8 * i + (t ^ 1); }

  template <int T>
  NIBBLE_INLINE __m512 part(Bytes w) const {
    return _mm512_permutexvar_ps(_mm512_srli_epi32(w, 4 * T), table);
  }
  NIBBLE_INLINE static __m512 load_x(const float* x) { return _mm512_loadu_ps(x); }
  NIBBLE_INLINE static __m512 dot(__m512 sum, __m512 w, __m512 x) { return _mm512_fmadd_ps(w, x, sum); }
};

/// A word holds 4 codes; the table is doubled, as a permutation of words reads 5 bits.
struct ChunkBf16 {
  using Element = uint16_t;
  static constexpr int kParts = 4;
  static constexpr int64_t kPartElements = 32;
  __m512i table;

  explicit ChunkBf16(const float* code_book) {
    const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(code_book), _mm512_set1_ps(bf16_code_book_scale(code_book)));
    const auto half = (__m256i)_mm512_cvtneps_pbh(scaled);
    table = _mm512_inserti64x4(_mm512_castsi256_si512(half), half, 1);
  }
  static float absmax_scale(const float* code_book) { return 1 / bf16_code_book_scale(code_book); }
  NIBBLE_INLINE static int64_t code_of(int t, int64_t i) { return 4 * i + (t ^ 1); }

  template <int T>
  NIBBLE_INLINE __m512i part(Bytes w) const {
    return _mm512_permutexvar_epi16(_mm512_srli_epi16(w, 4 * T), table);
  }
  NIBBLE_INLINE static __m512i load_x(const uint16_t* x) { return _mm512_loadu_si512(x); }
  NIBBLE_INLINE static __m512 dot(__m512 sum, __m512i w, __m512i x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x);
  }
};

#else

using Bytes = __m256i;
NIBBLE_INLINE Bytes load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
/// `lanes` is 4 here: half a chunk.
NIBBLE_INLINE Bytes load_bytes(const uint8_t* p, int64_t) {
  return _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

struct ScalesOf32 {
  NIBBLE_INLINE static __m256 at(const float* scales, int64_t chunk, int, int64_t last) {
    const int64_t second = chunk * 2 + 1;
    return _mm256_set_m128(_mm_set1_ps(scales[second < last ? second : last]), _mm_set1_ps(scales[chunk * 2]));
  }
};
struct ScalesOf64 {  // and more
  NIBBLE_INLINE static __m256 at(const float* scales, int64_t chunk, int shift, int64_t) {
    return _mm256_broadcast_ss(scales + (chunk * kChunkCodes >> shift));
  }
};
/// 16 bytes in both halves, for byte look-ups.
NIBBLE_INLINE __m256i byte_table(const uint32_t* values, int shift) {
  alignas(16) uint8_t bytes[16];
  for (int c = 0; c < 16; ++c) bytes[c] = static_cast<uint8_t>(values[c] >> shift);
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
}

/// High (T < 4) or low nibbles of every byte.
template <int T>
NIBBLE_INLINE __m256i nibbles(Bytes w) {
  return _mm256_and_si256(T < 4 ? _mm256_srli_epi16(w, 4) : w, _mm256_set1_epi8(15));
}

/// Four byte look-ups make an fp32 value; interleaving them twice leaves 4 neighbours a half in each part.
struct ChunkF32 {
  using Element = float;
  static constexpr int kParts = 8;
  static constexpr int64_t kPartElements = 8;
  __m256i table[4];

  explicit ChunkF32(const float* code_book) {
    uint32_t bits[16];
    std::memcpy(bits, code_book, sizeof bits);
    for (int b = 0; b < 4; ++b) table[b] = byte_table(bits, 8 * b);
  }
  static float absmax_scale(const float*) { return 1; }
  NIBBLE_INLINE static int64_t code_of(int t, int64_t i) { return 2 * (16 * (i / 4) + 4 * (t % 4) + i % 4) + t / 4; }

  template <int T>
  NIBBLE_INLINE __m256 part(Bytes w) const {
    const __m256i code = nibbles<T>(w);
    const __m256i b0 = _mm256_shuffle_epi8(table[0], code), b1 = _mm256_shuffle_epi8(table[1], code);
    const __m256i b2 = _mm256_shuffle_epi8(table[2], code), b3 = _mm256_shuffle_epi8(table[3], code);
    const __m256i low = T & 2 ? _mm256_unpackhi_epi8(b0, b1) : _mm256_unpacklo_epi8(b0, b1);
    const __m256i high = T & 2 ? _mm256_unpackhi_epi8(b2, b3) : _mm256_unpacklo_epi8(b2, b3);
    return _mm256_castsi256_ps(T & 1 ? _mm256_unpackhi_epi16(low, high) : _mm256_unpacklo_epi16(low, high));
  }
  NIBBLE_INLINE static __m256 load_x(const float* x) { return _mm256_loadu_ps(x); }
  NIBBLE_INLINE static __m256 dot(__m256 sum, __m256 w, __m256 x) { return _mm256_fmadd_ps(w, x, sum); }
};

/// bf16 values by two look-ups; the odd ones of a vector are fp32 as they stand, the even ones after a shift.
struct ChunkBf16 {
  using Element = float;
  static constexpr int kParts = 8;
  static constexpr int64_t kPartElements = 8;
  __m256i table[2];

  explicit ChunkBf16(const float* code_book) {
    uint32_t bits[16];
    for (int c = 0; c < 16; ++c) bits[c] = to_bf16(code_book[c] * bf16_code_book_scale(code_book)).bits;
    for (int b = 0; b < 2; ++b) table[b] = byte_table(bits, 8 * b);
  }
  static float absmax_scale(const float* code_book) { return 1 / bf16_code_book_scale(code_book); }
  NIBBLE_INLINE static int64_t code_of(int t, int64_t i) {
    return 2 * (16 * (i / 4) + 8 * (t / 2 % 2) + 2 * (i % 4) + t % 2) + t / 4;
  }

  template <int T>
  NIBBLE_INLINE __m256 part(Bytes w) const {
    const __m256i code = nibbles<T>(w);
    const __m256i b0 = _mm256_shuffle_epi8(table[0], code), b1 = _mm256_shuffle_epi8(table[1], code);
    const __m256i words = T & 2 ? _mm256_unpackhi_epi8(b0, b1) : _mm256_unpacklo_epi8(b0, b1);
    return _mm256_castsi256_ps(T & 1 ? _mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(0xffff0000)))
                                     : _mm256_slli_epi32(words, 16));
  }
  NIBBLE_INLINE static __m256 load_x(const float* x) { return _mm256_loadu_ps(x); }
  NIBBLE_INLINE static __m256 dot(__m256 sum, __m256 w, __m256 x) { return _mm256_fmadd_ps(w, x, sum); }
};

#endif

}  // namespace nibble::kernels::cpu::NIBBLE_ISA

#endif
