// The formula of each optimizer rule, for one element, as kernels.h states it.
#pragma once

#include <cmath>

#include "kernels/kernels.h"

namespace nibble::kernels::reference {

struct OptimizerStates {
  float state1 = 0, state2 = 0, state3 = 0;
};

inline float sign_of(float x) { return x > 0 ? 1.0f : x < 0 ? -1.0f : x; }

/// Steps the states; returns d.
inline float direction(OptimizerRule rule, const OptimizerScalars& c, float g, OptimizerStates& s) {
  const auto average = [](float state, float beta, float value) {
    return std::fma(state, beta, (1.0f - beta) * value);
  };
  switch (rule) {
    case OptimizerRule::adam:
      s.state1 = average(s.state1, c.beta1, g);
      s.state2 = average(s.state2, c.beta2, g * g);
      return s.state1 / (std::sqrt(s.state2) + c.eps);
    case OptimizerRule::ademamix:
      s.state1 = average(s.state1, c.beta1, g);
      s.state2 = average(s.state2, c.beta2, g * g);
      s.state3 = average(s.state3, c.beta3, g);
      return std::fma(c.alpha, s.state3, s.state1 * c.correction1) /
             std::fma(std::sqrt(s.state2), c.correction2, c.eps);
    case OptimizerRule::momentum:
      s.state1 = std::fma(s.state1, c.beta1, g);
      return s.state1;
    case OptimizerRule::lion: {
      const float d = sign_of(average(s.state1, c.beta1, g));
      s.state1 = average(s.state1, c.beta2, g);
      return d;
    }
    case OptimizerRule::rmsprop:
      s.state1 = average(s.state1, c.beta1, g * g);
      return g / (std::sqrt(s.state1) + c.eps);
    case OptimizerRule::adagrad:
      s.state1 = std::fma(g, g, s.state1);
      return g / (std::sqrt(s.state1) + c.eps);
  }
  return 0;
}

/// The gradient that the rule sees.
inline float scaled_gradient(const OptimizerScalars& c, float p, float gradient) {
  const float g = gradient * c.gradient_scale;
  return c.coupled_decay != 0 ? std::fma(c.coupled_decay, p, g) : g;
}

inline float moved(const OptimizerScalars& c, float rate, float p, float d) { return std::fma(-rate, d, p * c.keep); }

}  // namespace nibble::kernels::reference
