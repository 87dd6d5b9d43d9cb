// The vectors of one instruction set: fp32 and int32 lanes, and the fused steps that the matmul tiles are made of.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cpu/isa/simd.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace nibble::kernels::cpu::NIBBLE_ISA {

#if defined(__AVX512BF16__)
#define NIBBLE_AVX512 1
inline constexpr int kTileRows = 12;  // rows of x that a tile holds: 24 of the 32 registers accumulate
using VecF = __m512;
using VecI = __m512i;
#elif defined(__AVX2__)
#define NIBBLE_AVX2 1
inline constexpr int kTileRows = 6;
using VecF = __m256;
using VecI = __m256i;
#else
inline constexpr int kTileRows = 6;
using VecF = float __attribute__((vector_size(16)));
using VecI = int32_t __attribute__((vector_size(16)));
#endif

/// What x, and dense weights, are rounded to before they are multiplied.
enum class Rounding : uint8_t { none, bf16, f16 };

/// out[i] = x[i] rounded, as fp32.
[[maybe_unused]] static void round_row(const float* x, int64_t count, Rounding rounding, float* out) {
  if (rounding == Rounding::none) {
    std::memcpy(out, x, static_cast<size_t>(count) * sizeof(float));
  } else if (rounding == Rounding::bf16) {
    for (int64_t i = 0; i < count; ++i) out[i] = to_float(to_bf16(x[i]));
  } else {
    int64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= count; i += 8)
      _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT)));
#endif
    for (; i < count; ++i) out[i] = to_float(to_f16(x[i]));
  }
}

#if defined(NIBBLE_AVX512)
/// out[i] = bf16(x[i]).
[[maybe_unused]] static void round_row(const float* x, int64_t count, Rounding, uint16_t* out) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + i)));
  for (; i < count; ++i) out[i] = to_bf16(x[i]).bits;
}
#endif

/// Rows of w that a panel holds.
inline constexpr int kPanelRows = 2 * kLanes;

// A step multiplies the dwords of `w` (one row of w a lane) with one dword of x in all lanes and adds the products.
// A dword holds kPerDword consecutive elements of a row.

/// fp32: one product a dword.
struct StepF32 {
  using Element = float;
  using Lane = float;
  using Vec = VecF;
  static constexpr int kPerDword = 1;
#if defined(NIBBLE_AVX512)
  NIBBLE_INLINE static Vec zero() { return _mm512_setzero_ps(); }
  NIBBLE_INLINE static Vec load(const void* p) { return _mm512_loadu_ps(p); }
  NIBBLE_INLINE static Vec broadcast(const uint32_t* p) { return _mm512_set1_ps(*reinterpret_cast<const float*>(p)); }
  NIBBLE_INLINE static Vec step(Vec sum, Vec w, Vec x) { return _mm512_fmadd_ps(w, x, sum); }
  NIBBLE_INLINE static void add_to(float* p, Vec v) { _mm512_storeu_ps(p, _mm512_add_ps(_mm512_loadu_ps(p), v)); }
#elif defined(NIBBLE_AVX2)
  NIBBLE_INLINE static Vec zero() { return _mm256_setzero_ps(); }
  NIBBLE_INLINE static Vec load(const void* p) { return _mm256_loadu_ps(static_cast<const float*>(p)); }
  NIBBLE_INLINE static Vec broadcast(const uint32_t* p) {
    return _mm256_broadcast_ss(reinterpret_cast<const float*>(p));
  }
  NIBBLE_INLINE static Vec step(Vec sum, Vec w, Vec x) { return _mm256_fmadd_ps(w, x, sum); }
  NIBBLE_INLINE static void add_to(float* p, Vec v) { _mm256_storeu_ps(p, _mm256_add_ps(_mm256_loadu_ps(p), v)); }
#else
  NIBBLE_INLINE static Vec zero() { return Vec{}; }
  NIBBLE_INLINE static Vec load(const void* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  NIBBLE_INLINE static Vec broadcast(const uint32_t* p) {
    float x;
    std::memcpy(&x, p, sizeof x);
    return Vec{x, x, x, x};
  }
  NIBBLE_INLINE static Vec step(Vec sum, Vec w, Vec x) { return sum + w * x; }
  NIBBLE_INLINE static void add_to(float* p, Vec v) {
    const Vec sum = load(p) + v;
    std::memcpy(p, &sum, sizeof sum);
  }
#endif
};

#if defined(NIBBLE_AVX512)

/// bf16 pairs, accumulated in fp32.
struct StepBf16 : StepF32 {
  using Element = uint16_t;
  using Pairs = __m512i;
  static constexpr int kPerDword = 2;
  NIBBLE_INLINE static __m512i load(const void* p) { return _mm512_loadu_si512(p); }
  NIBBLE_INLINE static __m512i broadcast(const uint32_t* p) { return _mm512_set1_epi32(static_cast<int>(*p)); }
  NIBBLE_INLINE static Vec step(Vec sum, __m512i w, __m512i x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x);
  }
};

/// Four int8 products a dword. The panel holds w + 128 as unsigned bytes: the caller subtracts 128 * sum(x).
struct StepInt8 {
  using Element = int8_t;
  using Lane = int32_t;
  using Vec = VecI;
  static constexpr int kPerDword = 4;
  static constexpr int kOffset = 128;
  NIBBLE_INLINE static Vec zero() { return _mm512_setzero_si512(); }
  NIBBLE_INLINE static Vec load(const void* p) { return _mm512_loadu_si512(p); }
  NIBBLE_INLINE static Vec broadcast(const uint32_t* p) { return _mm512_set1_epi32(static_cast<int>(*p)); }
  /// As assembly: g++ 12 keeps an array of the intrinsic's sums in memory.
  NIBBLE_INLINE static Vec step(Vec sum, Vec w, Vec x) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
  }
  NIBBLE_INLINE static void add_to(int32_t* p, Vec v) {
    _mm512_storeu_si512(p, _mm512_add_epi32(_mm512_loadu_si512(p), v));
  }
};

#else

/// Pairs of int8 values held as int16: exact in every instruction set.
struct StepInt8 {
  using Element = int16_t;
  using Lane = int32_t;
  using Vec = VecI;
  static constexpr int kPerDword = 2;
  static constexpr int kOffset = 0;
#if defined(NIBBLE_AVX2)
  NIBBLE_INLINE static Vec zero() { return _mm256_setzero_si256(); }
  NIBBLE_INLINE static Vec load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  NIBBLE_INLINE static Vec broadcast(const uint32_t* p) { return _mm256_set1_epi32(static_cast<int>(*p)); }
  NIBBLE_INLINE static Vec step(Vec sum, Vec w, Vec x) { return _mm256_add_epi32(sum, _mm256_madd_epi16(w, x)); }
  NIBBLE_INLINE static void add_to(int32_t* p, Vec v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_add_epi32(load(p), v));
  }
#else
  NIBBLE_INLINE static Vec zero() { return Vec{}; }
  NIBBLE_INLINE static Vec load(const void* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  NIBBLE_INLINE static Vec broadcast(const uint32_t* p) {
    const auto x = static_cast<int32_t>(*p);
    return Vec{x, x, x, x};
  }
  NIBBLE_INLINE static Vec step(Vec sum, Vec w, Vec x) {
#if defined(__SSE2__)
    return sum + (Vec)_mm_madd_epi16((__m128i)w, (__m128i)x);
#else
    return sum + ((w << 16) >> 16) * ((x << 16) >> 16) + (w >> 16) * (x >> 16);
#endif
  }
  NIBBLE_INLINE static void add_to(int32_t* p, Vec v) {
    const Vec sum = load(p) + v;
    std::memcpy(p, &sum, sizeof sum);
  }
#endif
};

#endif

#if defined(NIBBLE_AVX512) || defined(NIBBLE_AVX2)
/// Lanes a quarter (AVX-512) or a half (AVX2) of the vector apart, added.
NIBBLE_INLINE __m128 quarter_sums(VecF v) {
#if defined(NIBBLE_AVX512)
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
#else
  const __m256 half = v;
#endif
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

NIBBLE_INLINE float sum_of_lanes(VecF v) {
  const __m128 quarter = quarter_sums(v);
  const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}

/// Four vectors at once, each summed in the order of sum_of_lanes.
NIBBLE_INLINE __m128 sums_of_lanes(VecF v0, VecF v1, VecF v2, VecF v3) {
  const __m128 a = quarter_sums(v0), b = quarter_sums(v1), c = quarter_sums(v2), d = quarter_sums(v3);
  const __m128 first = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
  const __m128 second = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
  return _mm_add_ps(_mm_shuffle_ps(first, second, 0x88), _mm_shuffle_ps(first, second, 0xdd));
}

/// y[r][j] = the sum of the lanes of v[r][j].
template <int R, int M>
NIBBLE_INLINE void sum_rows(const VecF (&v)[R][M], float (&y)[R][M]) {
  if constexpr (R == 4) {
    NIBBLE_UNROLL
    for (int j = 0; j < M; ++j) {
      alignas(16) float sums[4];
      _mm_store_ps(sums, sums_of_lanes(v[0][j], v[1][j], v[2][j], v[3][j]));
      for (int r = 0; r < R; ++r) y[r][j] = sums[r];
    }
  } else {
    NIBBLE_UNROLL
    for (int r = 0; r < R; ++r) NIBBLE_UNROLL
    for (int j = 0; j < M; ++j) y[r][j] = sum_of_lanes(v[r][j]);
  }
}
#endif

/// Asks for the cache line `bytes` behind a position, by address: it may lie past the end, where a prefetch is
/// harmless and a pointer is not allowed.
NIBBLE_INLINE void prefetch_at(const void* position, int64_t bytes) {
  __builtin_prefetch(
      reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(position) + static_cast<uintptr_t>(bytes)));
}

/// Asks for all lines of `size_bytes` bytes. Forced inline down to here: g++ drops calls of functions that only
/// prefetch.
NIBBLE_INLINE void prefetch_bytes(const void* p, int64_t size_bytes) {
  const auto* bytes = static_cast<const char*>(p);
  for (int64_t i = 0; i < size_bytes; i += 64) __builtin_prefetch(bytes + i);
}

/// Asks for the cache line that a walk through the weights needs a little later: 4 KiB pages stop the processor's own
/// prefetching, and a row is often shorter than one. `position` moves through each group of rows at the pace of the
/// walk.
template <class T>
NIBBLE_INLINE void prefetch_ahead(const T* position) {
  constexpr int64_t kAheadBytes = 8192;
  prefetch_at(position, kAheadBytes);
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
