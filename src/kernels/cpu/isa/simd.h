// One vector of floats per instruction set: loads, stores with conversion, arithmetic, reductions.
//
// F32 holds kLanes floats, Mask the result of a comparison. Everything is forced inline (see entries.h for why).
#pragma once

#include <cstdint>

#include "base/half.h"
#include "kernels/cpu/isa/entries.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define NIBBLE_SIMD [[gnu::always_inline]] static inline

/// In front of loops over arrays of vectors: g++ 12 keeps an array in memory whose loops it unrolls late.
#if defined(__clang__)
#define NIBBLE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define NIBBLE_UNROLL _Pragma("GCC unroll 16")
#endif

namespace nibble::kernels::cpu::NIBBLE_ISA {

NIBBLE_SIMD int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
NIBBLE_SIMD int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
NIBBLE_SIMD int64_t ceil_of(int64_t a, int64_t b) { return (a + b - 1) / b; }

#if defined(__AVX512F__)

inline constexpr int64_t kLanes = 16;
using F32 = __m512;
using Mask = __mmask16;

NIBBLE_SIMD F32 set1(float x) { return _mm512_set1_ps(x); }
NIBBLE_SIMD F32 load(const float* p) { return _mm512_loadu_ps(p); }
NIBBLE_SIMD F32 load(const bf16_t* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
NIBBLE_SIMD F32 load(const f16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
NIBBLE_SIMD F32 load(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
NIBBLE_SIMD void store(float* p, F32 x) { _mm512_storeu_ps(p, x); }
/// Whole numbers in [-128, 127]; NaN becomes 0.
NIBBLE_SIMD void store_int8(int8_t* p, F32 x) {
  const __m512i whole = _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), x);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(whole));
}
/// Rounded by hand: vcvtneps2bf16 would flush denormals to zero.
NIBBLE_SIMD __m256i round_bf16(F32 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i chosen = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16));
}
NIBBLE_SIMD void store(bf16_t* p, F32 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), round_bf16(x)); }
NIBBLE_SIMD void store(f16_t* p, F32 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
NIBBLE_SIMD void store_bytes(void* p, __m512i x, bool streamed) {
  if (streamed)
    _mm512_stream_si512(static_cast<__m512i*>(p), x);
  else
    _mm512_storeu_si512(p, x);
}
NIBBLE_SIMD void store_bytes(void* p, __m256i x, bool streamed) {
  if (streamed)
    _mm256_stream_si256(static_cast<__m256i*>(p), x);
  else
    _mm256_storeu_si256(static_cast<__m256i*>(p), x);
}
/// As bf16, for lanes that are zero or at least 2^-126 in size.
NIBBLE_SIMD __m512i round_normal_bf16(F32 low, F32 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }
NIBBLE_SIMD void store(float* p, F32 x, bool streamed) { store_bytes(p, _mm512_castps_si512(x), streamed); }
NIBBLE_SIMD void store(bf16_t* p, F32 x, bool streamed) { store_bytes(p, round_bf16(x), streamed); }
NIBBLE_SIMD void store(f16_t* p, F32 x, bool streamed) {
  store_bytes(p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT), streamed);
}
NIBBLE_SIMD F32 load_some(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
NIBBLE_SIMD void store_some(float* p, F32 x, int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), x);
}

NIBBLE_SIMD F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
NIBBLE_SIMD F32 max(F32 a, F32 b) { return _mm512_max_ps(a, b); }  // b where either is NaN
NIBBLE_SIMD F32 min(F32 a, F32 b) { return _mm512_min_ps(a, b); }
NIBBLE_SIMD F32 abs(F32 x) { return _mm512_abs_ps(x); }
NIBBLE_SIMD F32 round(F32 x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
NIBBLE_SIMD Mask greater(F32 a, F32 b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
NIBBLE_SIMD F32 select(Mask m, F32 yes, F32 no) { return _mm512_mask_blend_ps(m, no, yes); }
NIBBLE_SIMD F32 lane_numbers() { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
/// 2^n for whole n in [-126, 127].
NIBBLE_SIMD F32 power_of_two(F32 n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
NIBBLE_SIMD float reduce_add(F32 x) { return _mm512_reduce_add_ps(x); }
NIBBLE_SIMD float reduce_max(F32 x) { return _mm512_reduce_max_ps(x); }
/// Lane i is all lanes of rows[i] combined by `op`.
template <typename Op>
NIBBLE_SIMD F32 fold_rows(const F32 (&rows)[kLanes], Op op) {
  F32 quads[4];
  NIBBLE_UNROLL
  for (int i = 0; i < 4; ++i) {
    const F32* a = rows + 4 * i;
    const F32 low = op(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1]));
    const F32 high = op(_mm512_unpacklo_ps(a[2], a[3]), _mm512_unpackhi_ps(a[2], a[3]));
    const __m512d l = _mm512_castps_pd(low), h = _mm512_castps_pd(high);
    quads[i] = op(_mm512_castpd_ps(_mm512_unpacklo_pd(l, h)), _mm512_castpd_ps(_mm512_unpackhi_pd(l, h)));
  }
  const F32 low = op(_mm512_shuffle_f32x4(quads[0], quads[1], 0x88), _mm512_shuffle_f32x4(quads[0], quads[1], 0xdd));
  const F32 high = op(_mm512_shuffle_f32x4(quads[2], quads[3], 0x88), _mm512_shuffle_f32x4(quads[2], quads[3], 0xdd));
  return op(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
}

/// rows[i][j] becomes rows[j][i].
NIBBLE_SIMD void transpose(F32 (&rows)[kLanes]) {
  F32 quads[kLanes];  // quads[4 i + j]: column j of each 4 x 4 tile in rows 4 i ..
  for (int i = 0; i < kLanes; i += 4) {
    const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(rows[i], rows[i + 1]));
    const __m512d b = _mm512_castps_pd(_mm512_unpackhi_ps(rows[i], rows[i + 1]));
    const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(rows[i + 2], rows[i + 3]));
    const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(rows[i + 2], rows[i + 3]));
    quads[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
    quads[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    quads[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
    quads[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  for (int j = 0; j < 4; ++j) {
    const F32 low = _mm512_shuffle_f32x4(quads[j], quads[4 + j], 0x88);
    const F32 low_odd = _mm512_shuffle_f32x4(quads[j], quads[4 + j], 0xdd);
    const F32 high = _mm512_shuffle_f32x4(quads[8 + j], quads[12 + j], 0x88);
    const F32 high_odd = _mm512_shuffle_f32x4(quads[8 + j], quads[12 + j], 0xdd);
    rows[j] = _mm512_shuffle_f32x4(low, high, 0x88);
    rows[8 + j] = _mm512_shuffle_f32x4(low, high, 0xdd);
    rows[4 + j] = _mm512_shuffle_f32x4(low_odd, high_odd, 0x88);
    rows[12 + j] = _mm512_shuffle_f32x4(low_odd, high_odd, 0xdd);
  }
}

#elif defined(__AVX2__)

inline constexpr int64_t kLanes = 8;
using F32 = __m256;
using Mask = __m256;

NIBBLE_SIMD F32 set1(float x) { return _mm256_set1_ps(x); }
NIBBLE_SIMD F32 load(const float* p) { return _mm256_loadu_ps(p); }
NIBBLE_SIMD F32 load(const bf16_t* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
NIBBLE_SIMD F32 load(const f16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
NIBBLE_SIMD F32 load(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
NIBBLE_SIMD void store(float* p, F32 x) { _mm256_storeu_ps(p, x); }
NIBBLE_SIMD void store_int8(int8_t* p, F32 x) {
  const __m256i whole = _mm256_cvtps_epi32(_mm256_and_ps(x, _mm256_cmp_ps(x, x, _CMP_ORD_Q)));
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
NIBBLE_SIMD __m128i round_bf16(F32 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  const __m256i chosen = _mm256_blendv_epi8(rounded, quiet, _mm256_castps_si256(nan));
  const __m256i words = _mm256_srli_epi32(chosen, 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
NIBBLE_SIMD void store(bf16_t* p, F32 x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), round_bf16(x)); }
NIBBLE_SIMD void store(f16_t* p, F32 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
NIBBLE_SIMD void store_bytes(void* p, __m256i x, bool streamed) {
  if (streamed)
    _mm256_stream_si256(static_cast<__m256i*>(p), x);
  else
    _mm256_storeu_si256(static_cast<__m256i*>(p), x);
}
NIBBLE_SIMD void store_bytes(void* p, __m128i x, bool streamed) {
  if (streamed)
    _mm_stream_si128(static_cast<__m128i*>(p), x);
  else
    _mm_storeu_si128(static_cast<__m128i*>(p), x);
}
NIBBLE_SIMD void store(float* p, F32 x, bool streamed) { store_bytes(p, _mm256_castps_si256(x), streamed); }
NIBBLE_SIMD void store(bf16_t* p, F32 x, bool streamed) { store_bytes(p, round_bf16(x), streamed); }
NIBBLE_SIMD void store(f16_t* p, F32 x, bool streamed) {
  store_bytes(p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT), streamed);
}
NIBBLE_SIMD __m256i first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
NIBBLE_SIMD F32 load_some(const float* p, int64_t n) { return _mm256_maskload_ps(p, first_lanes(n)); }
NIBBLE_SIMD void store_some(float* p, F32 x, int64_t n) { _mm256_maskstore_ps(p, first_lanes(n), x); }

NIBBLE_SIMD F32 fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
NIBBLE_SIMD F32 max(F32 a, F32 b) { return _mm256_max_ps(a, b); }
NIBBLE_SIMD F32 min(F32 a, F32 b) { return _mm256_min_ps(a, b); }
NIBBLE_SIMD F32 abs(F32 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
NIBBLE_SIMD F32 round(F32 x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
NIBBLE_SIMD Mask greater(F32 a, F32 b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
NIBBLE_SIMD F32 select(Mask m, F32 yes, F32 no) { return _mm256_blendv_ps(no, yes, m); }
NIBBLE_SIMD F32 lane_numbers() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
NIBBLE_SIMD F32 power_of_two(F32 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
NIBBLE_SIMD float reduce_add(F32 x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
NIBBLE_SIMD float reduce_max(F32 x) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
template <typename Op>
NIBBLE_SIMD F32 fold_rows(const F32 (&rows)[kLanes], Op op) {
  F32 halves[2];
  NIBBLE_UNROLL
  for (int i = 0; i < 2; ++i) {
    const F32* a = rows + 4 * i;
    const F32 low = op(_mm256_unpacklo_ps(a[0], a[1]), _mm256_unpackhi_ps(a[0], a[1]));
    const F32 high = op(_mm256_unpacklo_ps(a[2], a[3]), _mm256_unpackhi_ps(a[2], a[3]));
    const __m256d l = _mm256_castps_pd(low), h = _mm256_castps_pd(high);
    halves[i] = op(_mm256_castpd_ps(_mm256_unpacklo_pd(l, h)), _mm256_castpd_ps(_mm256_unpackhi_pd(l, h)));
  }
  return op(_mm256_permute2f128_ps(halves[0], halves[1], 0x20), _mm256_permute2f128_ps(halves[0], halves[1], 0x31));
}

NIBBLE_SIMD void transpose(F32 (&rows)[kLanes]) {
  F32 quads[kLanes];
  for (int i = 0; i < kLanes; i += 4) {
    const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(rows[i], rows[i + 1]));
    const __m256d b = _mm256_castps_pd(_mm256_unpackhi_ps(rows[i], rows[i + 1]));
    const __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(rows[i + 2], rows[i + 3]));
    const __m256d d = _mm256_castps_pd(_mm256_unpackhi_ps(rows[i + 2], rows[i + 3]));
    quads[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
    quads[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
    quads[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
    quads[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
  }
  for (int j = 0; j < 4; ++j) {
    rows[j] = _mm256_permute2f128_ps(quads[j], quads[4 + j], 0x20);
    rows[4 + j] = _mm256_permute2f128_ps(quads[j], quads[4 + j], 0x31);
  }
}

#else

inline constexpr int64_t kLanes = 4;
using F32 [[gnu::vector_size(16)]] = float;
using Mask [[gnu::vector_size(16)]] = int32_t;

NIBBLE_SIMD F32 set1(float x) { return F32{x, x, x, x}; }
template <typename T>
NIBBLE_SIMD F32 load(const T* p) {
  return F32{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
}
template <typename T>
NIBBLE_SIMD void store(T* p, F32 x) {
  for (int i = 0; i < kLanes; ++i) p[i] = from_float<T>(x[i]);
}
template <typename T>
NIBBLE_SIMD void store(T* p, F32 x, bool) {
  store(p, x);
}
NIBBLE_SIMD F32 load(const int8_t* p) {
  return F32{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]), static_cast<float>(p[3])};
}
NIBBLE_SIMD void store_int8(int8_t* p, F32 x) {
  for (int i = 0; i < kLanes; ++i) p[i] = x[i] == x[i] ? static_cast<int8_t>(x[i]) : int8_t{0};
}
NIBBLE_SIMD F32 load_some(const float* p, int64_t n) {
  F32 x = set1(0);
  for (int64_t i = 0; i < n; ++i) x[i] = p[i];
  return x;
}
NIBBLE_SIMD void store_some(float* p, F32 x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = x[i];
}

NIBBLE_SIMD F32 fma(F32 a, F32 b, F32 c) { return a * b + c; }
NIBBLE_SIMD Mask greater(F32 a, F32 b) { return a > b; }
NIBBLE_SIMD F32 select(Mask m, F32 yes, F32 no) {
  return reinterpret_cast<F32>((m & reinterpret_cast<Mask>(yes)) | (~m & reinterpret_cast<Mask>(no)));
}
NIBBLE_SIMD F32 max(F32 a, F32 b) { return select(a > b, a, b); }
NIBBLE_SIMD F32 min(F32 a, F32 b) { return select(a < b, a, b); }
NIBBLE_SIMD F32 abs(F32 x) { return reinterpret_cast<F32>(reinterpret_cast<Mask>(x) & 0x7fffffff); }
NIBBLE_SIMD F32 round(F32 x) {  // half to even: adding 1.5 * 2^23 leaves no fraction bits
  const F32 magic = set1(12582912.0f);
  return select(greater(set1(4194304.0f), abs(x)), (x + magic) - magic, x);
}
NIBBLE_SIMD F32 lane_numbers() { return F32{0, 1, 2, 3}; }
NIBBLE_SIMD F32 power_of_two(F32 n) {
  const Mask whole = reinterpret_cast<Mask>(n + set1(12582912.0f + 127.0f));
  return reinterpret_cast<F32>(whole << 23);
}
NIBBLE_SIMD float reduce_add(F32 x) { return (x[0] + x[2]) + (x[1] + x[3]); }
NIBBLE_SIMD float reduce_max(F32 x) {
  const float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
  return a > b ? a : b;
}
template <typename Op>
NIBBLE_SIMD F32 fold_rows(const F32 (&rows)[kLanes], Op op) {
  F32 folded{};
  for (int i = 0; i < kLanes; ++i) folded[i] = op(op(rows[i][0], rows[i][2]), op(rows[i][1], rows[i][3]));
  return folded;
}
NIBBLE_SIMD void transpose(F32 (&rows)[kLanes]) {
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < i; ++j) {
      const float kept = rows[i][j];
      rows[i][j] = rows[j][i];
      rows[j][i] = kept;
    }
}

#endif

/// Lane i is the sum of the lanes of rows[i].
NIBBLE_SIMD F32 sum_rows(const F32 (&rows)[kLanes]) {
  return fold_rows(rows, [](auto a, auto b) { return a + b; });
}

/// From here on a call's output goes around the caches: it would only push out what is still needed.
inline constexpr int64_t kStreamedBytes = int64_t{8} << 20;

/// True if `p` suits streaming stores of whole cache lines and the output is that large.
NIBBLE_SIMD bool is_streamed([[maybe_unused]] const void* p, [[maybe_unused]] int64_t size_bytes) {
#if defined(__AVX2__)
  return size_bytes >= kStreamedBytes && reinterpret_cast<uintptr_t>(p) % 64 == 0;
#else
  return false;
#endif
}

/// Makes streamed stores visible to the threads that this one reports to.
NIBBLE_SIMD void finish_stream([[maybe_unused]] bool streamed) {
#if defined(__AVX2__)
  if (streamed) _mm_sfence();
#endif
}

/// Asks for the cache lines of the `size_bytes` that lie `ahead_bytes` after p: the processor's own prefetching stops
/// at each 4 KiB page and rests while a block that is already in the cache is encoded.
NIBBLE_SIMD void prefetch_ahead(const void* p, int64_t size_bytes, int64_t ahead_bytes) {
  // As an integer: the address may lie past the end, where a prefetch is harmless and a pointer is not allowed.
  const auto address = reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(ahead_bytes);
  for (int64_t i = 0; i < size_bytes; i += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(address + static_cast<uintptr_t>(i)));
}

/// How far ahead: a whole block where it fits the first cache beside the current one.
NIBBLE_SIMD int64_t prefetch_distance(int64_t block_bytes) { return max_of(8192, min_of(16384, block_bytes)); }

/// Elements of a piece of blockwise work: large calls in large pieces, as each starts with cold memory.
NIBBLE_SIMD int64_t piece_elements(int64_t count) { return count >= (int64_t{1} << 23) ? 1 << 18 : 1 << 15; }

/// body(begin, end) over [0, count) in pieces of `grain`, shared by the pool's threads.
template <typename Body>
NIBBLE_SIMD void for_ranges(const Context& context, int64_t count, int64_t grain, Body&& body) {
  const int64_t pieces = ceil_of(count, grain);
  if (!context.pool || pieces <= 1) {
    if (count > 0) body(int64_t{0}, count);
    return;
  }
  context.pool->parallel_for(pieces, [&](int64_t i, int) { body(i * grain, min_of(count, (i + 1) * grain)); });
}

/// The first n (1 to kLanes) elements at p; the other lanes are zero, or left alone.
NIBBLE_SIMD F32 load_first(const float* p, int64_t n) { return n == kLanes ? load(p) : load_some(p, n); }
NIBBLE_SIMD void store_first(float* p, F32 x, int64_t n) { n == kLanes ? store(p, x) : store_some(p, x, n); }

/// Calls body(T*) with the element type of `dtype` (f32, bf16 or f16) and `pointer` cast to it.
template <typename Body>
NIBBLE_SIMD void with_type(DType dtype, const void* pointer, Body&& body) {
  switch (dtype) {
    case DType::bf16:
      return body(static_cast<const bf16_t*>(pointer));
    case DType::f16:
      return body(static_cast<const f16_t*>(pointer));
    default:
      return body(static_cast<const float*>(pointer));
  }
}
template <typename Body>
NIBBLE_SIMD void with_type(DType dtype, void* pointer, Body&& body) {
  switch (dtype) {
    case DType::bf16:
      return body(static_cast<bf16_t*>(pointer));
    case DType::f16:
      return body(static_cast<f16_t*>(pointer));
    default:
      return body(static_cast<float*>(pointer));
  }
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
