// The scale of one block: its largest magnitude and what the blockwise formats make of special values.
#pragma once

#include "kernels/cpu/isa/simd.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

struct BlockScale {
  float absmax;     // over all elements but NaN; denormal counts as zero
  float inverse;    // 1 / absmax; NaN for a zero block
  bool is_special;  // zero, or NaN or Inf inside: x * inverse may be NaN
};

/// Largest bit pattern of |x|: ordered like the numbers, NaN above Inf.
NIBBLE_SIMD uint32_t largest_bits(const float* x, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x[i]) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}
template <typename T>
NIBBLE_SIMD uint32_t largest_bits(const T* x, int64_t count) {
  uint16_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t bits = x[i].bits & 0x7fffu;
    largest = bits > largest ? bits : largest;
  }
  return __builtin_bit_cast(uint32_t, to_float(T{largest}));
}

template <typename T>
NIBBLE_SIMD BlockScale block_scale(const T* x, int64_t count) {
  const uint32_t largest = largest_bits(x, count);
  BlockScale scale{__builtin_bit_cast(float, largest), 0, largest >= 0x7f800000u};
  if (largest > 0x7f800000u) {  // NaN somewhere: the slow way around it
    scale.absmax = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float size = __builtin_fabsf(to_float(x[i]));
      if (size > scale.absmax) scale.absmax = size;
    }
  }
  if (scale.absmax < 0x1p-126f) return {0, __builtin_nanf(""), true};
  scale.inverse = 1.0f / scale.absmax;
  return scale;
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
