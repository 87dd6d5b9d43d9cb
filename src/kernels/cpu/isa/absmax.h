// The absmax of blocks, plain or nested.
#pragma once

#include "kernels/cpu/isa/vector.h"
#include "kernels/kernels.h"

#if defined(NIBBLE_AVX512)
#include "kernels/cpu/isa/byte_tables.h"
#endif

namespace nibble::kernels::cpu::NIBBLE_ISA {

NIBBLE_INLINE float absmax_of(const Absmax& absmax, int64_t block) {
  if (absmax.values) return absmax.values[block];
  const float product =
      absmax.nested_code_book[absmax.codes[block]] * absmax.nested_absmax[block / quant::kNestedBlock];
  return product + absmax.offset;
}

/// A nested absmax, prepared for runs of blocks.
class NestedAbsmax {
 public:
  explicit NestedAbsmax(const Absmax& absmax) : absmax_(absmax) {
#if defined(NIBBLE_AVX512)
    if (!absmax.values) table_ = load_float_table(absmax.nested_code_book);
#endif
  }

  /// out[i] = the absmax of block first + i.
  void expand(int64_t first, int64_t count, float* out) const {
#if defined(NIBBLE_AVX512)
    for (int64_t i = 0; i < count; i += 64) expand_some(first + i, count - i < 64 ? count - i : 64, out + i);
#else
    for (int64_t i = 0; i < count; ++i) out[i] = absmax_of(absmax_, first + i);
#endif
  }

 private:
#if defined(NIBBLE_AVX512)
  /// The same for count <= 64.
  void expand_some(int64_t first, int64_t count, float* out) const {
    const __mmask64 mask = ~uint64_t{0} >> (64 - count);
    // The look-up takes its first vector from dwords 0, 4, 8 and 12, and so on.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512 values[4];
    look_up(table_, _mm512_permutexvar_epi32(order, _mm512_maskz_loadu_epi8(mask, absmax_.codes + first)), values);
    // 64 blocks lie in one or two of the 256 that share a nested absmax.
    const int64_t group = first / quant::kNestedBlock, next = (first + count - 1) / quant::kNestedBlock;
    const int64_t here = (group + 1) * quant::kNestedBlock - first;
    const uint64_t after = here < 64 ? ~uint64_t{0} << here : 0;
    const __m512 scales[2] = {_mm512_set1_ps(absmax_.nested_absmax[group]),
                              _mm512_set1_ps(absmax_.nested_absmax[next])};
    const __m512 offset = _mm512_set1_ps(absmax_.offset);
    for (int i = 0; i < 4; ++i) {
      const __m512 scale = _mm512_mask_blend_ps(static_cast<__mmask16>(after >> (16 * i)), scales[0], scales[1]);
      _mm512_mask_storeu_ps(out + 16 * i, static_cast<__mmask16>(mask >> (16 * i)),
                            _mm512_add_ps(_mm512_mul_ps(values[i], scale), offset));
    }
  }

  FloatTable table_;
#endif
  const Absmax& absmax_;
};

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
