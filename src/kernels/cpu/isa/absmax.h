// The absmax of blocks, plain or nested.
#pragma once

#include "kernels/cpu/isa/vector.h"
#include "kernels/kernels.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

NIBBLE_INLINE float absmax_of(const Absmax& absmax, int64_t block) {
  if (absmax.values) return absmax.values[block];
  const float product =
      absmax.nested_code_book[absmax.codes[block]] * absmax.nested_absmax[block / quant::kNestedBlock];
  return product + absmax.offset;
}

/// out[i] = the nested absmax of block first + i.
[[maybe_unused]] static void expand_absmax(const Absmax& absmax, int64_t first, int64_t count, float* out) {
#if defined(NIBBLE_AVX512)
  const __m512 offset = _mm512_set1_ps(absmax.offset);
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t block = first + i, size = count - i < 16 ? count - i : 16;
    const auto mask = static_cast<__mmask16>((1u << size) - 1);
    const __m512i codes = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, absmax.codes + block));
    const __m512 values = _mm512_i32gather_ps(codes, absmax.nested_code_book, 4);
    // 16 blocks lie in one or two of the 256 that share a nested absmax.
    const int64_t group = block / quant::kNestedBlock, next = (block + size - 1) / quant::kNestedBlock;
    const int64_t here = (group + 1) * quant::kNestedBlock - block;
    const auto after = static_cast<__mmask16>(here < 16 ? 0xffffu << here : 0);
    const __m512 nested = _mm512_mask_blend_ps(after, _mm512_set1_ps(absmax.nested_absmax[group]),
                                               _mm512_set1_ps(absmax.nested_absmax[next]));
    _mm512_mask_storeu_ps(out + i, mask, _mm512_add_ps(_mm512_mul_ps(values, nested), offset));
  }
#else
  for (int64_t i = 0; i < count; ++i) out[i] = absmax_of(absmax, first + i);
#endif
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
