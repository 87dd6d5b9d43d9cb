// The inner loop of dequantize_4bit: 32 elements from 16 bytes by looking up a block's sixteen outputs.
//
// make_outputs<T>(code_book, absmax) prepares a block, look_up_32(outputs, packed, out, streamed) decodes.
#pragma once

#include "kernels/cpu/isa/simd.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

#if defined(__AVX512F__)

struct Outputs32 {
  __m512 values;
};
struct Outputs16 {
  __m512i values;  // sixteen words, twice: a look-up takes five bits and the nibble gives four
};

/// Bit offsets that bring nibble i of a qword, the high half of each byte first, to lane i.
alignas(64) inline constexpr uint8_t kDwordOffsets[64] = {
    4,  0, 0, 0, 0,  0, 0, 0, 12, 0, 0, 0, 8,  0, 0, 0, 20, 0, 0, 0, 16, 0, 0, 0, 28, 0, 0, 0, 24, 0, 0, 0,
    36, 0, 0, 0, 32, 0, 0, 0, 44, 0, 0, 0, 40, 0, 0, 0, 52, 0, 0, 0, 48, 0, 0, 0, 60, 0, 0, 0, 56, 0, 0, 0};
alignas(64) inline constexpr uint8_t kWordOffsets[64] = {
    4, 0, 0, 0, 12, 0, 8, 0, 20, 0, 16, 0, 28, 0, 24, 0, 36, 0, 32, 0, 44, 0, 40, 0, 52, 0, 48, 0, 60, 0, 56, 0,
    4, 0, 0, 0, 12, 0, 8, 0, 20, 0, 16, 0, 28, 0, 24, 0, 36, 0, 32, 0, 44, 0, 40, 0, 52, 0, 48, 0, 60, 0, 56, 0};

NIBBLE_SIMD Outputs32 make_outputs(const float* code_book, float absmax, const float*) {
  return {load(code_book) * set1(absmax)};
}
NIBBLE_SIMD Outputs16 make_outputs(const float* code_book, float absmax, const bf16_t*) {
  return {_mm512_broadcast_i64x4(round_bf16(load(code_book) * set1(absmax)))};
}
NIBBLE_SIMD Outputs16 make_outputs(const float* code_book, float absmax, const f16_t*) {
  return {_mm512_broadcast_i64x4(_mm512_cvtps_ph(load(code_book) * set1(absmax), _MM_FROUND_TO_NEAREST_INT))};
}

NIBBLE_SIMD void look_up_32(const Outputs32& outputs, const uint8_t* packed, float* out, bool streamed) {
  for (int half = 0; half < 2; ++half) {
    int64_t bytes;
    __builtin_memcpy(&bytes, packed + 8 * half, sizeof bytes);
    const __m512i nibbles = _mm512_multishift_epi64_epi8(_mm512_load_si512(kDwordOffsets), _mm512_set1_epi64(bytes));
    store_bytes(out + 16 * half, _mm512_castps_si512(_mm512_permutexvar_ps(nibbles, outputs.values)), streamed);
  }
}
template <typename T>
NIBBLE_SIMD void look_up_32(const Outputs16& outputs, const uint8_t* packed, T* out, bool streamed) {
  const __m512i bytes = _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed)));
  const __m512i qwords = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 0, 0, 1, 1, 1, 1), bytes);
  const __m512i nibbles = _mm512_multishift_epi64_epi8(_mm512_load_si512(kWordOffsets), qwords);
  store_bytes(out, _mm512_permutexvar_epi16(nibbles, outputs.values), streamed);
}

#elif defined(__AVX2__)

struct Outputs32 {
  __m256 low, high;  // of codes 0 .. 7 and 8 .. 15
};
struct Outputs16 {
  __m256i low, high;  // lower and upper bytes of the sixteen words, in both halves
};

NIBBLE_SIMD Outputs32 make_outputs(const float* code_book, float absmax, const float*) {
  return {load(code_book) * set1(absmax), load(code_book + 8) * set1(absmax)};
}
NIBBLE_SIMD Outputs16 split_words(__m128i first, __m128i second) {
  const __m128i byte = _mm_set1_epi16(0xff);
  const __m128i low = _mm_packus_epi16(_mm_and_si128(first, byte), _mm_and_si128(second, byte));
  const __m128i high = _mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(second, 8));
  return {_mm256_broadcastsi128_si256(low), _mm256_broadcastsi128_si256(high)};
}
NIBBLE_SIMD Outputs16 make_outputs(const float* code_book, float absmax, const bf16_t*) {
  return split_words(round_bf16(load(code_book) * set1(absmax)), round_bf16(load(code_book + 8) * set1(absmax)));
}
NIBBLE_SIMD Outputs16 make_outputs(const float* code_book, float absmax, const f16_t*) {
  return split_words(_mm256_cvtps_ph(load(code_book) * set1(absmax), _MM_FROUND_TO_NEAREST_INT),
                     _mm256_cvtps_ph(load(code_book + 8) * set1(absmax), _MM_FROUND_TO_NEAREST_INT));
}

NIBBLE_SIMD void look_up_32(const Outputs32& outputs, const uint8_t* packed, float* out, bool streamed) {
  const __m256i shifts = _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24);
  for (int i = 0; i < 4; ++i) {
    int32_t bytes;
    __builtin_memcpy(&bytes, packed + 4 * i, sizeof bytes);
    const __m256i codes = _mm256_srlv_epi32(_mm256_set1_epi32(bytes), shifts);
    const __m256 low = _mm256_permutevar8x32_ps(outputs.low, codes),
                 high = _mm256_permutevar8x32_ps(outputs.high, codes);
    const __m256 value = _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
    store_bytes(out + 8 * i, _mm256_castps_si256(value), streamed);
  }
}
template <typename T>
NIBBLE_SIMD void look_up_32(const Outputs16& outputs, const uint8_t* packed, T* out, bool streamed) {
  const __m256i bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(packed)));
  const __m256i pairs = _mm256_or_si256(_mm256_srli_epi16(bytes, 4), _mm256_slli_epi16(bytes, 8));
  const __m256i codes = _mm256_and_si256(pairs, _mm256_set1_epi8(15));
  const __m256i low = _mm256_shuffle_epi8(outputs.low, codes), high = _mm256_shuffle_epi8(outputs.high, codes);
  const __m256i first = _mm256_unpacklo_epi8(low, high), second = _mm256_unpackhi_epi8(low, high);
  store_bytes(out, _mm256_permute2x128_si256(first, second, 0x20), streamed);
  store_bytes(out + 16, _mm256_permute2x128_si256(first, second, 0x31), streamed);
}

#else

template <typename T>
struct Outputs {
  T values[16];
};

template <typename T>
NIBBLE_SIMD Outputs<T> make_outputs(const float* code_book, float absmax, const T*) {
  Outputs<T> outputs;
  for (int i = 0; i < 16; ++i) outputs.values[i] = from_float<T>(code_book[i] * absmax);
  return outputs;
}
template <typename T>
NIBBLE_SIMD void look_up_32(const Outputs<T>& outputs, const uint8_t* packed, T* out, bool) {
  for (int i = 0; i < 16; ++i) {
    out[2 * i] = outputs.values[packed[i] >> 4];
    out[2 * i + 1] = outputs.values[packed[i] & 15];
  }
}

#endif

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
