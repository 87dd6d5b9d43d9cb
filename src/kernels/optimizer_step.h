// The entries that optimizers are made of: their arguments and contracts. The rules of kernels.h hold.
#pragma once

#include <cstdint>

#include "nibble/types.h"

namespace nibble::kernels {

/// How a parameter p moves, element by element, g = gradient * gradient_scale. Decay is either part of the gradient
/// (g = fma(coupled_decay, p, g)) or of the parameter (keep); then p = fma(-rate, d, p * keep), rounded once to its
/// type. d and the states by rule, in fp32, each fma rounded once:
///   adam      state1 = fma(state1, beta1, (1 - beta1) g); state2 = fma(state2, beta2, (1 - beta2) (g g));
///             d = state1 / (sqrt(state2) + eps)
///   ademamix  state1, state2 as adam; state3 = fma(state3, beta3, (1 - beta3) g);
///             d = fma(alpha, state3, state1 * correction1) / fma(sqrt(state2), correction2, eps)
///   momentum  state1 = fma(state1, beta1, g); d = state1
///   lion      d = sign(fma(state1, beta1, (1 - beta1) g)); state1 = fma(state1, beta2, (1 - beta2) g)
///   rmsprop   state1 = fma(state1, beta1, (1 - beta1) (g g)); d = g / (sqrt(state1) + eps)
///   adagrad   state1 = fma(g, g, state1); d = g / (sqrt(state1) + eps)
enum class OptimizerRule : uint8_t { adam, ademamix, momentum, lion, rmsprop, adagrad };

/// The numbers of one parameter's step. Bias corrections are part of them: adam has rate = lr c2 / c1 and eps c2.
struct OptimizerScalars {
  float gradient_scale = 1;
  float coupled_decay = 0;  // momentum, rmsprop, adagrad
  float keep = 1;           // adam, ademamix, lion: 1 - lr * weight_decay
  float rate = 0;
  float beta1 = 0, beta2 = 0, beta3 = 0;
  float eps = 0;
  float alpha = 0;
  float correction1 = 1, correction2 = 1;
  /// > 0: rate is multiplied by min(1, max_unorm |p| / |unorm_scale d|), norms over the whole parameter.
  float max_unorm = 0;
  float unorm_scale = 1;
};

/// Elements that one thread works on at a time; a multiple of every state block.
inline constexpr int64_t kOptimizerChunk = 16384;
/// Elements of an 8-bit state that share one absmax.
inline constexpr int64_t kStateBlock = 256;

/// One parameter of a call, without its states.
struct OptimizerParameter {
  void* parameter;  // (count) of `dtype`: f32, bf16 or f16
  DType dtype;
  const void* gradient;  // (count) of `gradient_dtype`: f32, bf16 or f16
  DType gradient_dtype;
  int64_t count;
  OptimizerScalars scalars;
  int64_t chunks_before;  // chunks of the parameters before it in the call
  /// (2 * chunks), needed where max_unorm > 0: norms[0] and norms[1] become sum(p^2), of the old p, and
  /// sum((unorm_scale d)^2). Sums are taken in double: element i of a chunk into partial i mod 16, partials in order,
  /// then chunks in order.
  double* norms = nullptr;
};

/// States in fp32. NaN and Inf in the gradient reach state and parameter, as in torch.
struct OptimizerJob32Bit {
  OptimizerParameter of;
  float* state1;            // (count)
  float* state2 = nullptr;  // (count): adam, ademamix
  float* state3 = nullptr;  // (count): ademamix
};
struct OptimizerStep32BitArgs {
  OptimizerRule rule;
  const OptimizerJob32Bit* jobs;
  int64_t count;
};

/// States in 8 bits, blocks of kStateBlock: state = code_book[code] * absmax. After the step the parameter has moved by
/// the unrounded states; each is quantized as by quantize_8bit, except that a negative one never takes the code of
/// zero but the one below. An element any of whose new states is not finite (its gradient was NaN, Inf, or too large
/// to be squared) has its states set to 0 and its parameter kept: it would spoil its whole block. Where max_unorm > 0,
/// it counts in neither norm.
struct OptimizerJob8Bit {
  OptimizerParameter of;
  uint8_t* codes1;  // (count)
  float* absmax1;   // (ceil(count / kStateBlock))
  uint8_t* codes2 = nullptr;
  float* absmax2 = nullptr;
  uint8_t* codes3 = nullptr;
  float* absmax3 = nullptr;
};
struct OptimizerStep8BitArgs {
  OptimizerRule rule;
  const OptimizerJob8Bit* jobs;
  int64_t count;
  const float* code_book1;  // (256), of states 1 and 3
  const float* code_book2;  // (256), of state 2
};

/// sums[i] = the sum of squares of array i, in the order that OptimizerParameter states.
struct SumSquaresJob {
  const void* x;  // (count) of `dtype`: f32, bf16 or f16
  DType dtype;
  int64_t count;
  int64_t chunks_before;  // chunks of kOptimizerChunk of the arrays before it
};
struct SumSquaresArgs {
  const SumSquaresJob* jobs;
  int64_t count;
  double* partials;  // (chunks of all arrays)
  double* sums;      // (count)
};

}  // namespace nibble::kernels
