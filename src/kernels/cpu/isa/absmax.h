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
  int64_t i = 0;
#if defined(NIBBLE_AVX512)
  const __m512 offset = _mm512_set1_ps(absmax.offset);
  for (; i + 16 <= count; i += 16) {
    const int64_t block = first + i;
    if (block / quant::kNestedBlock != (block + 15) / quant::kNestedBlock) {
      for (int j = 0; j < 16; ++j) out[i + j] = absmax_of(absmax, block + j);
      continue;
    }
    const __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(absmax.codes + block)));
    const __m512 values = _mm512_i32gather_ps(codes, absmax.nested_code_book, 4);
    const __m512 scaled = _mm512_mul_ps(values, _mm512_set1_ps(absmax.nested_absmax[block / quant::kNestedBlock]));
    _mm512_storeu_ps(out + i, _mm512_add_ps(scaled, offset));
  }
#endif
  for (; i < count; ++i) out[i] = absmax_of(absmax, first + i);
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
