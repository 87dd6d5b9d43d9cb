// Rows of dwords to columns: what makes a panel out of decoded rows of w.
#pragma once

#include "kernels/cpu/isa/vector.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

#if defined(NIBBLE_AVX512)
/// 16 x 16 dwords.
NIBBLE_INLINE void transpose_square(const uint32_t* rows, int64_t stride, uint32_t* out, int64_t out_stride) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(rows + i * stride);
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // a[i + j]: column j of every quarter, rows i .. i + 3
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    const __m512i low0 = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x44), high0 = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xee);
    const __m512i low1 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x44);
    const __m512i high1 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xee);
    _mm512_storeu_si512(out + j * out_stride, _mm512_shuffle_i32x4(low0, low1, 0x88));
    _mm512_storeu_si512(out + (4 + j) * out_stride, _mm512_shuffle_i32x4(low0, low1, 0xdd));
    _mm512_storeu_si512(out + (8 + j) * out_stride, _mm512_shuffle_i32x4(high0, high1, 0x88));
    _mm512_storeu_si512(out + (12 + j) * out_stride, _mm512_shuffle_i32x4(high0, high1, 0xdd));
  }
}
#elif defined(NIBBLE_AVX2)
/// 8 x 8 dwords.
NIBBLE_INLINE void transpose_square(const uint32_t* rows, int64_t stride, uint32_t* out, int64_t out_stride) {
  __m256i a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + i * stride));
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    a[i] = _mm256_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    auto* low = reinterpret_cast<__m256i*>(out + j * out_stride);
    auto* high = reinterpret_cast<__m256i*>(out + (4 + j) * out_stride);
    _mm256_storeu_si256(low, _mm256_permute2x128_si256(a[j], a[4 + j], 0x20));
    _mm256_storeu_si256(high, _mm256_permute2x128_si256(a[j], a[4 + j], 0x31));
  }
}
#else
/// kLanes x kLanes dwords.
NIBBLE_INLINE void transpose_square(const uint32_t* rows, int64_t stride, uint32_t* out, int64_t out_stride) {
  for (int k = 0; k < kLanes; ++k)
    for (int r = 0; r < kLanes; ++r) out[k * out_stride + r] = rows[r * stride + k];
}
#endif

/// (kPanelRows, depth) dwords, `stride` apart, to (depth, kPanelRows). Reads and writes depth rounded up to kLanes.
[[maybe_unused]] static void transpose_panel(const uint32_t* rows, int64_t stride, int64_t depth, uint32_t* panel) {
  for (int64_t k = 0; k < depth; k += kLanes) {
    transpose_square(rows + k, stride, panel + k * kPanelRows, kPanelRows);
    transpose_square(rows + kLanes * stride + k, stride, panel + k * kPanelRows + kLanes, kPanelRows);
  }
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
