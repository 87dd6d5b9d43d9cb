// The inner loop of dequantize_8bit: kDecodeStep codes at a time, for each instruction set.
//
// make_values(code_book); decode_step(values, codes, scale, out, streamed).
#pragma once

#include "kernels/cpu/isa/byte_tables.h"
#include "kernels/cpu/isa/simd.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

#if defined(__AVX512F__)

inline constexpr int64_t kDecodeStep = 64;

struct Values {
  FloatTable table;
  const float* code_book;
  float smallest;  // least size of a code book value, zeros aside
};

NIBBLE_SIMD Values make_values(const float* code_book) {
  float smallest = __builtin_inff();
  for (int i = 0; i < 256; ++i) {
    const float size = __builtin_fabsf(code_book[i]);
    if (size > 0 && size < smallest) smallest = size;
  }
  return {load_float_table(code_book), code_book, smallest};
}

/// out[0 .. 256) = the code book times absmax.
template <typename T>
NIBBLE_SIMD void scale_code_book(const Values& values, float absmax, T* out) {
  const float* v = values.code_book;
  const F32 scale = set1(absmax);
  if constexpr (__is_same(T, bf16_t))
    if (values.smallest * absmax >= 0x1p-126f) {
      for (int i = 0; i < 256; i += 32)
        store_bytes(out + i, round_normal_bf16(load(v + i) * scale, load(v + i + 16) * scale), false);
      return;
    }
  for (int i = 0; i < 256; i += 16) store(out + i, load(v + i) * scale);
}

template <typename T>
NIBBLE_SIMD void decode_step(const Values& values, const uint8_t* codes, F32 scale, T* out, bool streamed) {
  // Dwords 4 l + q from 4 q + l, so that the look-up leaves the elements in order.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  F32 decoded[4];
  look_up(values.table, _mm512_permutexvar_epi32(order, _mm512_loadu_si512(codes)), decoded);
  for (int q = 0; q < 4; ++q) decoded[q] = decoded[q] * scale;
  if constexpr (sizeof(T) == sizeof(float)) {
    for (int q = 0; q < 4; ++q) store_bytes(out + 16 * q, _mm512_castps_si512(decoded[q]), streamed);
  } else {
    T words[kDecodeStep];
    for (int q = 0; q < 4; ++q) store(words + 16 * q, decoded[q]);
    store_bytes(out, _mm512_loadu_si512(words), streamed);
    store_bytes(out + 32, _mm512_loadu_si512(words + 32), streamed);
  }
}

/// Blocks from this size on have their 256 possible outputs computed first.
inline constexpr int64_t kTabledBlock = 256;

NIBBLE_SIMD int64_t decode_by_table(const Values&, float, const uint8_t*, int64_t, float*, bool) { return 0; }

/// Whole steps of one block; returns how many elements that is.
template <typename T>
NIBBLE_SIMD int64_t decode_by_table(const Values& values, float absmax, const uint8_t* codes, int64_t count, T* out,
                                    bool streamed) {
  if (count < kTabledBlock) return 0;
  alignas(64) T words[256];
  scale_code_book(values, absmax, words);
  const WordTable table = load_word_table(words);
  int64_t i = 0;
  for (; i + kDecodeStep <= count; i += kDecodeStep) {
    __m512i decoded[2];
    look_up(table, _mm512_loadu_si512(codes + i), decoded);
    store_bytes(out + i, decoded[0], streamed);
    store_bytes(out + i + 32, decoded[1], streamed);
  }
  return i;
}

#elif defined(__AVX2__)

inline constexpr int64_t kDecodeStep = 16;

struct Values {
  const float* table;
};

NIBBLE_SIMD Values make_values(const float* code_book) { return {code_book}; }

/// Eight loads to all lanes, blended, beat a gather, and eight to one lane each, which shuffles would join; taking
/// codes apart beats loading them one by one.
NIBBLE_SIMD F32 gather(const float* t, const uint8_t* codes) {
  uint32_t c[2];
  __builtin_memcpy(c, codes, sizeof c);
  const auto at = [&](int i) { return _mm256_broadcast_ss(t + (c[i / 4] >> (8 * (i % 4)) & 0xff)); };
  const F32 pairs[4] = {_mm256_blend_ps(at(0), at(1), 0xaa), _mm256_blend_ps(at(2), at(3), 0xaa),
                        _mm256_blend_ps(at(4), at(5), 0xaa), _mm256_blend_ps(at(6), at(7), 0xaa)};
  return _mm256_blend_ps(_mm256_blend_ps(pairs[0], pairs[1], 0xcc), _mm256_blend_ps(pairs[2], pairs[3], 0xcc), 0xf0);
}

template <typename T>
NIBBLE_SIMD void decode_step(const Values& values, const uint8_t* codes, F32 scale, T* out, bool streamed) {
  const F32 first = gather(values.table, codes) * scale, second = gather(values.table, codes + 8) * scale;
  if constexpr (sizeof(T) == sizeof(float)) {
    store_bytes(out, _mm256_castps_si256(first), streamed);
    store_bytes(out + 8, _mm256_castps_si256(second), streamed);
  } else {
    T words[kDecodeStep];
    store(words, first);
    store(words + 8, second);
    store_bytes(out, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)), streamed);
  }
}

#else

inline constexpr int64_t kDecodeStep = 4;

struct Values {
  const float* table;
};

NIBBLE_SIMD Values make_values(const float* code_book) { return {code_book}; }

template <typename T>
NIBBLE_SIMD void decode_step(const Values& values, const uint8_t* codes, F32 scale, T* out, bool) {
  const F32 decoded = {values.table[codes[0]], values.table[codes[1]], values.table[codes[2]], values.table[codes[3]]};
  store(out, decoded * scale);
}

#endif

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
