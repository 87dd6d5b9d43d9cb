// Activation functions of one element.
#pragma once

#include "kernels/kernels.h"

namespace nibble::kernels::cuda {

template <Activation kActivation>
__device__ float apply(float x) {
  if constexpr (kActivation == Activation::silu) {
    return x / (1.0f + expf(-x));
  } else if constexpr (kActivation == Activation::gelu) {
    return 0.5f * x * erfcf(x * -0.70710678118654752f);
  } else if constexpr (kActivation == Activation::gelu_tanh) {
    const float inner = 0.79788456080286536f * fmaf(0.044715f * x * x, x, x);
    return x / (1.0f + expf(-2.0f * inner));  // 0.5 x (1 + tanh(inner)), without its cancellation
  } else if constexpr (kActivation == Activation::relu) {
    return x > 0 || isnan(x) ? x : 0.0f;
  } else if constexpr (kActivation == Activation::quick_gelu) {
    return x / (1.0f + expf(-1.702f * x));
  } else {
    return tanhf(x);
  }
}

__device__ __forceinline__ float activated(Activation activation, float x) {
  switch (activation) {
    case Activation::silu:
      return apply<Activation::silu>(x);
    case Activation::gelu:
      return apply<Activation::gelu>(x);
    case Activation::gelu_tanh:
      return apply<Activation::gelu_tanh>(x);
    case Activation::relu:
      return apply<Activation::relu>(x);
    case Activation::quick_gelu:
      return apply<Activation::quick_gelu>(x);
    case Activation::tanh_:
      return apply<Activation::tanh_>(x);
  }
  return x;
}

}  // namespace nibble::kernels::cuda
