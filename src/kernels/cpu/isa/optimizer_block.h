// Up to kStateBlock elements on their way through an optimizer step, as fp32 in the first cache.
#pragma once

#include "kernels/cpu/isa/optimizer_rules.h"
#include "kernels/cpu/isa/square_sum.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

/// Room for one block; what lies past its elements is zero, so that loops run over whole vectors.
struct BlockBuffer {
  alignas(64) float values[kStateBlock];
};

NIBBLE_SIMD int64_t whole_vectors(int64_t count) { return ceil_of(count, kLanes) * kLanes; }

/// `count` elements as fp32: the array itself if it is fp32 and a whole block, else the buffer.
NIBBLE_SIMD float* open_block(void* data, DType dtype, int64_t begin, int64_t count, BlockBuffer& buffer) {
  if (dtype == DType::f32 && count == kStateBlock) return static_cast<float*>(data) + begin;
  with_type(dtype, data, [&](const auto* x) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(buffer.values + i, load(x + begin + i));
    for (; i < count; ++i) buffer.values[i] = to_float(x[begin + i]);
    for (; i % kLanes != 0; ++i) buffer.values[i] = 0;
  });
  return buffer.values;
}
NIBBLE_SIMD const float* open_block(const void* data, DType dtype, int64_t begin, int64_t count, BlockBuffer& buffer) {
  return open_block(const_cast<void*>(data), dtype, begin, count, buffer);
}

/// Writes back what open_block() gave.
NIBBLE_SIMD void close_block(void* data, DType dtype, int64_t begin, int64_t count, const float* values) {
  if (dtype == DType::f32 && count == kStateBlock) return;
  with_type(dtype, data, [&]<typename T>(T* x) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(x + begin + i, load(values + i));
    for (; i < count; ++i) x[begin + i] = from_float<T>(values[i]);
  });
}

/// The gradient that the rule sees.
template <typename Rule>
NIBBLE_SIMD F32 scaled_gradient(const OptimizerScalars& c, F32 p, F32 gradient) {
  const F32 g = gradient * set1(c.gradient_scale);
  if constexpr (Rule::kCouplesDecay)
    if (c.coupled_decay != 0) return fused(set1(c.coupled_decay), p, g);
  return g;
}

/// Lanes all of whose states are finite.
template <typename Rule>
NIBBLE_SIMD Mask is_finite(const F32 (&s)[3]) {
  F32 zero_or_nan = s[0] * set1(0);
  for (int k = 1; k < Rule::kStates; ++k) zero_or_nan = zero_or_nan + s[k] * set1(0);
  return greater(set1(1), zero_or_nan);
}

/// Moves p and the states of `count` elements. Guarded: as optimizer_step_8bit treats states that are not finite;
/// absmax[k] becomes the largest size in states[k].
template <typename Rule, bool kIsGuarded>
NIBBLE_SIMD void step_block(const OptimizerScalars& shared, float rate, int64_t count, float* p, const float* g,
                            float* const (&states)[3], float (&absmax)[3]) {
  const OptimizerScalars c = shared;  // stores to p cannot change it
  const F32 down = set1(-rate), keep = set1(c.keep);
  F32 largest[3] = {set1(0), set1(0), set1(0)};
  for (int64_t i = 0; i < count; i += kLanes) {
    F32 s[3];
    NIBBLE_UNROLL
    for (int k = 0; k < Rule::kStates; ++k) s[k] = load(states[k] + i);
    const F32 old = load(p + i);
    const F32 d = step_vector<Rule>(c, scaled_gradient<Rule>(c, old, load(g + i)), s);
    F32 moved = fused(down, d, old * keep);
    if constexpr (kIsGuarded) {
      const Mask is_good = is_finite<Rule>(s);
      moved = select(is_good, moved, old);
      NIBBLE_UNROLL
      for (int k = 0; k < Rule::kStates; ++k) {
        s[k] = select(is_good, s[k], set1(0));
        largest[k] = max(largest[k], abs(s[k]));
      }
    }
    NIBBLE_UNROLL
    for (int k = 0; k < Rule::kStates; ++k) store(states[k] + i, s[k]);
    store(p + i, moved);
  }
  if constexpr (kIsGuarded) {
    NIBBLE_UNROLL
    for (int k = 0; k < Rule::kStates; ++k) absmax[k] = reduce_max(largest[k]);
  }
}

/// Adds the squares of p and of unorm_scale d, changing nothing.
template <typename Rule, bool kIsGuarded>
NIBBLE_SIMD void measure_block(const OptimizerScalars& c, int64_t count, const float* p, const float* g,
                               const float* const (&states)[3], SquareSum (&sums)[2]) {
  BlockBuffer kept, update;
  for (int64_t i = 0; i < count; i += kLanes) {
    F32 s[3];
    NIBBLE_UNROLL
    for (int k = 0; k < Rule::kStates; ++k) s[k] = load(states[k] + i);
    F32 old = load(p + i);
    F32 d = step_vector<Rule>(c, scaled_gradient<Rule>(c, old, load(g + i)), s) * set1(c.unorm_scale);
    if constexpr (kIsGuarded) {
      const Mask is_good = is_finite<Rule>(s);
      old = select(is_good, old, set1(0));
      d = select(is_good, d, set1(0));
    }
    store(kept.values + i, old);
    store(update.values + i, d);
  }
  add_squares(kept.values, count, sums[0]);
  add_squares(update.values, count, sums[1]);
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
