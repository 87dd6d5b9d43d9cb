// The formula of each optimizer rule on the device, as optimizer_step.h states it.
//
// Rule::step(c, g, s) steps the states s and returns d. A rule with kIsQuotient has instead advance(c, g, s), which
// steps the states alone, and d = top(g, s) / (sqrt(under(s)) + eps).
#pragma once

#include "kernels/cuda/device/element.cuh"
#include "kernels/kernels.h"

namespace nibble::kernels::cuda {

__device__ __forceinline__ float average(float state, float beta, float value) {
  return __fmaf_rn(state, beta, __fmul_rn(__fadd_rn(1.0f, -beta), value));
}

struct AdamRule {
  static constexpr int kStates = 2;
  static constexpr bool kCouplesDecay = false, kIsQuotient = true;
  __device__ static __forceinline__ void advance(const OptimizerScalars& c, float g, float (&s)[3]) {
    s[0] = average(s[0], c.beta1, g);
    s[1] = average(s[1], c.beta2, __fmul_rn(g, g));
  }
  __device__ static __forceinline__ float top(float, const float (&s)[3]) { return s[0]; }
  __device__ static __forceinline__ float under(const float (&s)[3]) { return s[1]; }
};

struct AdemamixRule {
  static constexpr int kStates = 3;
  static constexpr bool kCouplesDecay = false, kIsQuotient = false;
  __device__ static __forceinline__ float step(const OptimizerScalars& c, float g, float (&s)[3]) {
    s[0] = average(s[0], c.beta1, g);
    s[1] = average(s[1], c.beta2, __fmul_rn(g, g));
    s[2] = average(s[2], c.beta3, g);
    return __fdiv_rn(__fmaf_rn(c.alpha, s[2], __fmul_rn(s[0], c.correction1)),
                     __fmaf_rn(__fsqrt_rn(s[1]), c.correction2, c.eps));
  }
};

struct MomentumRule {
  static constexpr int kStates = 1;
  static constexpr bool kCouplesDecay = true, kIsQuotient = false;
  __device__ static __forceinline__ float step(const OptimizerScalars& c, float g, float (&s)[3]) {
    return s[0] = __fmaf_rn(s[0], c.beta1, g);
  }
};

struct LionRule {
  static constexpr int kStates = 1;
  static constexpr bool kCouplesDecay = false, kIsQuotient = false;
  /// NaN stays NaN, zero zero.
  __device__ static __forceinline__ float step(const OptimizerScalars& c, float g, float (&s)[3]) {
    const float d = average(s[0], c.beta1, g);
    s[0] = average(s[0], c.beta2, g);
    return d > 0 ? 1.0f : d < 0 ? -1.0f : d;
  }
};

struct RmspropRule {
  static constexpr int kStates = 1;
  static constexpr bool kCouplesDecay = true, kIsQuotient = true;
  __device__ static __forceinline__ void advance(const OptimizerScalars& c, float g, float (&s)[3]) {
    s[0] = average(s[0], c.beta1, __fmul_rn(g, g));
  }
  __device__ static __forceinline__ float top(float g, const float (&)[3]) { return g; }
  __device__ static __forceinline__ float under(const float (&s)[3]) { return s[0]; }
};

struct AdagradRule {
  static constexpr int kStates = 1;
  static constexpr bool kCouplesDecay = true, kIsQuotient = true;
  __device__ static __forceinline__ void advance(const OptimizerScalars&, float g, float (&s)[3]) {
    s[0] = __fmaf_rn(g, g, s[0]);
  }
  __device__ static __forceinline__ float top(float g, const float (&)[3]) { return g; }
  __device__ static __forceinline__ float under(const float (&s)[3]) { return s[0]; }
};

/// The gradient that the rule sees.
template <typename Rule>
__device__ __forceinline__ float scaled_gradient(const OptimizerScalars& c, float p, float gradient) {
  const float g = __fmul_rn(gradient, c.gradient_scale);
  if constexpr (Rule::kCouplesDecay)
    if (c.coupled_decay != 0) return __fmaf_rn(c.coupled_decay, p, g);
  return g;
}

__device__ __forceinline__ float exact_quotient(float top, float under, float eps) {
  return __fdiv_rn(top, __fadd_rn(__fsqrt_rn(under), eps));
}

/// The same bits for numbers in ranges where no step of Newton's under- or overflows; sets is_special for others, and
/// leaves the branch to the caller, once for many elements.
__device__ __forceinline__ float plain_quotient(float top, float under, float eps, bool& is_special) {
  constexpr uint32_t kLow = 27u << 23, kTopLow = 37u << 24, kHigh = 187u << 23;  // 2^-100, 2^-90 (doubled), 2^60
  is_special |= __float_as_uint(under) - kLow > kHigh - kLow;
  is_special |= 2 * __float_as_uint(top) - kTopLow > 2 * kHigh - kTopLow;
  float r;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(under));
  float root = __fmul_rn(under, r);
  root = __fmaf_rn(__fmaf_rn(-root, root, under), __fmul_rn(0.5f, r), root);
  const float bottom = __fadd_rn(root, eps);
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(bottom));
  r = __fmaf_rn(__fmaf_rn(-bottom, r, 1.0f), r, r);
  float q = __fmul_rn(top, r);
  q = __fmaf_rn(__fmaf_rn(-bottom, q, top), r, q);
  return __fmaf_rn(__fmaf_rn(-bottom, q, top), r, q);
}

template <typename Rule>
__device__ __forceinline__ float exact_step(const OptimizerScalars& c, float g, float (&s)[3]) {
  if constexpr (Rule::kIsQuotient) {
    Rule::advance(c, g, s);
    return exact_quotient(Rule::top(g, s), Rule::under(s), c.eps);
  } else {
    return Rule::step(c, g, s);
  }
}

/// body(rule) with an object of the rule's type.
template <typename Body>
void with_rule(OptimizerRule rule, const Body& body) {
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

}  // namespace nibble::kernels::cuda
