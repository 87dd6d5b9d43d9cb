// The formula of each optimizer rule, for one vector of elements, as kernels.h states it.
//
// Rule::finish(c, Rule::start(c, g, s)) steps the states s and is d. Rule::kStates of s are used.
#pragma once

#include "kernels/cpu/isa/simd.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

#if defined(__AVX512F__)
NIBBLE_SIMD F32 fused(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
NIBBLE_SIMD F32 square_root(F32 x) { return _mm512_sqrt_ps(x); }
#elif defined(__AVX2__)
NIBBLE_SIMD F32 fused(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
NIBBLE_SIMD F32 square_root(F32 x) { return _mm256_sqrt_ps(x); }
#else
/// Rounded once, unlike fma(): the C library uses the processor's instruction if there is one.
NIBBLE_SIMD F32 fused(F32 a, F32 b, F32 c) {
  F32 r;
  for (int i = 0; i < kLanes; ++i) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return r;
}
NIBBLE_SIMD F32 square_root(F32 x) {
  F32 r;
  for (int i = 0; i < kLanes; ++i) r[i] = __builtin_sqrtf(x[i]);
  return r;
}
#endif

NIBBLE_SIMD F32 average(F32 state, float beta, F32 value) {
  return fused(state, set1(beta), set1(1.0f - beta) * value);
}

/// NaN stays NaN, zero zero.
NIBBLE_SIMD F32 sign_of(F32 x) {
  const F32 zero = set1(0);
  return select(greater(x, zero), set1(1), select(greater(zero, x), set1(-1), x));
}

/// d on its way: rules that divide do so late, as roots take long.
struct Ratio {
  F32 numerator, root;
};

struct AdamRule {
  static constexpr int kStates = 2;
  static constexpr bool kCouplesDecay = false;
  NIBBLE_INLINE static Ratio start(const OptimizerScalars& c, F32 g, F32 (&s)[3]) {
    s[0] = average(s[0], c.beta1, g);
    s[1] = average(s[1], c.beta2, g * g);
    return {s[0], square_root(s[1])};
  }
  NIBBLE_INLINE static F32 finish(const OptimizerScalars& c, const Ratio& r) {
    return r.numerator / (r.root + set1(c.eps));
  }
};

struct AdemamixRule {
  static constexpr int kStates = 3;
  static constexpr bool kCouplesDecay = false;
  NIBBLE_INLINE static Ratio start(const OptimizerScalars& c, F32 g, F32 (&s)[3]) {
    s[0] = average(s[0], c.beta1, g);
    s[1] = average(s[1], c.beta2, g * g);
    s[2] = average(s[2], c.beta3, g);
    return {fused(set1(c.alpha), s[2], s[0] * set1(c.correction1)), square_root(s[1])};
  }
  NIBBLE_INLINE static F32 finish(const OptimizerScalars& c, const Ratio& r) {
    return r.numerator / fused(r.root, set1(c.correction2), set1(c.eps));
  }
};

struct MomentumRule {
  static constexpr int kStates = 1;
  static constexpr bool kCouplesDecay = true;
  NIBBLE_INLINE static Ratio start(const OptimizerScalars& c, F32 g, F32 (&s)[3]) {
    s[0] = fused(s[0], set1(c.beta1), g);
    return {s[0], s[0]};
  }
  NIBBLE_INLINE static F32 finish(const OptimizerScalars&, const Ratio& r) { return r.numerator; }
};

struct LionRule {
  static constexpr int kStates = 1;
  static constexpr bool kCouplesDecay = false;
  NIBBLE_INLINE static Ratio start(const OptimizerScalars& c, F32 g, F32 (&s)[3]) {
    const F32 d = sign_of(average(s[0], c.beta1, g));
    s[0] = average(s[0], c.beta2, g);
    return {d, d};
  }
  NIBBLE_INLINE static F32 finish(const OptimizerScalars&, const Ratio& r) { return r.numerator; }
};

struct RmspropRule {
  static constexpr int kStates = 1;
  static constexpr bool kCouplesDecay = true;
  NIBBLE_INLINE static Ratio start(const OptimizerScalars& c, F32 g, F32 (&s)[3]) {
    s[0] = average(s[0], c.beta1, g * g);
    return {g, square_root(s[0])};
  }
  NIBBLE_INLINE static F32 finish(const OptimizerScalars& c, const Ratio& r) {
    return r.numerator / (r.root + set1(c.eps));
  }
};

struct AdagradRule {
  static constexpr int kStates = 1;
  static constexpr bool kCouplesDecay = true;
  NIBBLE_INLINE static Ratio start(const OptimizerScalars&, F32 g, F32 (&s)[3]) {
    s[0] = fused(g, g, s[0]);
    return {g, square_root(s[0])};
  }
  NIBBLE_INLINE static F32 finish(const OptimizerScalars& c, const Ratio& r) {
    return r.numerator / (r.root + set1(c.eps));
  }
};

/// Steps the states of one vector; returns d.
template <typename Rule>
NIBBLE_SIMD F32 step_vector(const OptimizerScalars& c, F32 g, F32 (&s)[3]) {
  return Rule::finish(c, Rule::start(c, g, s));
}

/// body(rule) with an object of the rule's type.
template <typename Body>
NIBBLE_SIMD void with_rule(OptimizerRule rule, Body&& body) {
  switch (rule) {
    case OptimizerRule::adam:
      return body(AdamRule{});
    case OptimizerRule::ademamix:
      return body(AdemamixRule{});
    case OptimizerRule::momentum:
      return body(MomentumRule{});
    case OptimizerRule::lion:
      return body(LionRule{});
    case OptimizerRule::rmsprop:
      return body(RmspropRule{});
    case OptimizerRule::adagrad:
      return body(AdagradRule{});
  }
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
