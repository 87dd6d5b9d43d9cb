// The formula of each optimizer rule, for one vector of elements, as kernels.h states it.
//
// Rule::start(c, g, s) steps the states s and returns a numerator; Rule::finish(c, numerator, root of s[kRootOf]) is d.
// Rule::kStates of s are used. kMovesByState: the numerator is s[0].
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

/// kRootOf: d has no root.
inline constexpr int kNoRoot = -1;

struct AdamRule {
  static constexpr int kStates = 2;
  static constexpr bool kCouplesDecay = false;
  static constexpr int kRootOf = 1;
  static constexpr bool kMovesByState = true;
  NIBBLE_INLINE static F32 start(const OptimizerScalars& c, F32 g, F32 (&s)[3]) {
    s[0] = average(s[0], c.beta1, g);
    s[1] = average(s[1], c.beta2, g * g);
    return s[0];
  }
  NIBBLE_INLINE static F32 finish(const OptimizerScalars& c, F32 numerator, F32 root) {
    return numerator / (root + set1(c.eps));
  }
};

struct AdemamixRule {
  static constexpr int kStates = 3;
  static constexpr bool kCouplesDecay = false;
  static constexpr int kRootOf = 1;
  static constexpr bool kMovesByState = false;
  NIBBLE_INLINE static F32 start(const OptimizerScalars& c, F32 g, F32 (&s)[3]) {
    s[0] = average(s[0], c.beta1, g);
    s[1] = average(s[1], c.beta2, g * g);
    s[2] = average(s[2], c.beta3, g);
    return fused(set1(c.alpha), s[2], s[0] * set1(c.correction1));
  }
  NIBBLE_INLINE static F32 finish(const OptimizerScalars& c, F32 numerator, F32 root) {
    return numerator / fused(root, set1(c.correction2), set1(c.eps));
  }
};

struct MomentumRule {
  static constexpr int kStates = 1;
  static constexpr bool kCouplesDecay = true;
  static constexpr int kRootOf = kNoRoot;
  static constexpr bool kMovesByState = true;
  NIBBLE_INLINE static F32 start(const OptimizerScalars& c, F32 g, F32 (&s)[3]) {
    s[0] = fused(s[0], set1(c.beta1), g);
    return s[0];
  }
  NIBBLE_INLINE static F32 finish(const OptimizerScalars&, F32 numerator, F32) { return numerator; }
};

struct LionRule {
  static constexpr int kStates = 1;
  static constexpr bool kCouplesDecay = false;
  static constexpr int kRootOf = kNoRoot;
  static constexpr bool kMovesByState = false;
  NIBBLE_INLINE static F32 start(const OptimizerScalars& c, F32 g, F32 (&s)[3]) {
    const F32 d = sign_of(average(s[0], c.beta1, g));
    s[0] = average(s[0], c.beta2, g);
    return d;
  }
  NIBBLE_INLINE static F32 finish(const OptimizerScalars&, F32 numerator, F32) { return numerator; }
};

struct RmspropRule {
  static constexpr int kStates = 1;
  static constexpr bool kCouplesDecay = true;
  static constexpr int kRootOf = 0;
  static constexpr bool kMovesByState = false;
  NIBBLE_INLINE static F32 start(const OptimizerScalars& c, F32 g, F32 (&s)[3]) {
    s[0] = average(s[0], c.beta1, g * g);
    return g;
  }
  NIBBLE_INLINE static F32 finish(const OptimizerScalars& c, F32 numerator, F32 root) {
    return numerator / (root + set1(c.eps));
  }
};

struct AdagradRule {
  static constexpr int kStates = 1;
  static constexpr bool kCouplesDecay = true;
  static constexpr int kRootOf = 0;
  static constexpr bool kMovesByState = false;
  NIBBLE_INLINE static F32 start(const OptimizerScalars&, F32 g, F32 (&s)[3]) {
    s[0] = fused(g, g, s[0]);
    return g;
  }
  NIBBLE_INLINE static F32 finish(const OptimizerScalars& c, F32 numerator, F32 root) {
    return numerator / (root + set1(c.eps));
  }
};

/// Steps the states of one vector; returns d.
template <typename Rule>
NIBBLE_SIMD F32 step_vector(const OptimizerScalars& c, F32 g, F32 (&s)[3]) {
  const F32 numerator = Rule::start(c, g, s);
  if constexpr (Rule::kRootOf == kNoRoot)
    return Rule::finish(c, numerator, numerator);
  else
    return Rule::finish(c, numerator, square_root(s[Rule::kRootOf]));
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
