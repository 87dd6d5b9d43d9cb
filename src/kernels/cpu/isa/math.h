// Vector exp, tanh and erfc: polynomials within about 2 ulp.
#pragma once

#include "kernels/cpu/isa/simd.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

/// e^x: 0 below -87.3, at most 2.4e38; NaN stays NaN.
NIBBLE_SIMD F32 exp(F32 x) {
  const F32 clamped = min(set1(88.3f), max(set1(-87.3f), x));
  const F32 n = round(clamped * set1(1.44269504f));
  const F32 r = fma(n, set1(2.12194440e-4f), fma(n, set1(-0.693359375f), clamped));
  F32 p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, r * r, r) + set1(1.0f);
  return select(greater(set1(-87.3f), x), set1(0.0f), p * power_of_two(n));
}

/// 1 / (1 + e^-x).
NIBBLE_SIMD F32 sigmoid(F32 x) { return set1(1.0f) / (set1(1.0f) + exp(set1(0.0f) - x)); }

NIBBLE_SIMD float exp_one(float x) {
  float lanes[kLanes];
  store(lanes, exp(set1(x)));
  return lanes[0];
}

NIBBLE_SIMD F32 tanh(F32 x) {
  const F32 size = abs(x);
  const F32 square = x * x;
  F32 p = set1(-5.70498872745e-3f);
  p = fma(p, square, set1(2.06390887954e-2f));
  p = fma(p, square, set1(-5.37397155531e-2f));
  p = fma(p, square, set1(1.33314422036e-1f));
  p = fma(p, square, set1(-3.33332819422e-1f));
  const F32 small = fma(p * square, x, x);
  const F32 large = set1(1.0f) - set1(2.0f) / (exp(size + size) + set1(1.0f));
  const F32 signed_large = select(greater(set1(0.0f), x), set1(0.0f) - large, large);
  return select(greater(size, set1(0.625f)), signed_large, small);
}

/// erfc(x) e^(x^2) for x >= 0: a polynomial in 1 / (1 + x * 0.3275911), our own least-squares fit (relative error
/// 4e-9).
NIBBLE_SIMD F32 scaled_erfc(F32 x) {
  const F32 t = set1(1.0f) / fma(x, set1(0.3275911f), set1(1.0f));
  F32 p = set1(0.05737226907f);
  p = fma(p, t, set1(-0.32100907748f));
  p = fma(p, t, set1(0.63675997752f));
  p = fma(p, t, set1(-0.57304135065f));
  p = fma(p, t, set1(0.51261634276f));
  p = fma(p, t, set1(-0.05670129674f));
  p = fma(p, t, set1(0.20825395840f));
  p = fma(p, t, set1(0.16511202432f));
  p = fma(p, t, set1(0.18586185972f));
  p = fma(p, t, set1(0.18477528959f));
  return p * t;
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
