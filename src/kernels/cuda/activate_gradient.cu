// activate_gradient: the value and slope of each activation function.
#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/device/vector.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

struct Value {
  float y, slope;
};

__device__ __forceinline__ Value sigmoid_times(float x, float factor) {
  const float s = 1.0f / (1.0f + expf(-factor * x));
  return {x * s, fmaf(factor * x * s, 1.0f - s, s)};
}

template <Activation kActivation>
__device__ __forceinline__ Value apply(float x) {
  if constexpr (kActivation == Activation::silu) {
    return sigmoid_times(x, 1.0f);
  } else if constexpr (kActivation == Activation::quick_gelu) {
    return sigmoid_times(x, 1.702f);
  } else if constexpr (kActivation == Activation::gelu) {
    const float share = 0.5f * erfcf(x * -0.70710678118654752f);
    return {x * share, fmaf(x, expf(-0.5f * x * x) * 0.39894228040143268f, share)};
  } else if constexpr (kActivation == Activation::gelu_tanh) {
    const float k = 0.79788456080286536f, t = tanhf(k * fmaf(0.044715f * x * x, x, x));
    return {0.5f * x * (1.0f + t),
            0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * k * fmaf(3.0f * 0.044715f * x, x, 1.0f)};
  } else if constexpr (kActivation == Activation::relu) {
    return {fmaxf(x, 0.0f), x > 0 ? 1.0f : 0.0f};
  } else {
    const float t = tanhf(x);
    return {t, 1.0f - t * t};
  }
}

template <typename T, Activation kActivation>
__global__ void gradient_kernel(ActivateGradientArgs args) {
  const int64_t row = blockIdx.y;
  const int64_t c = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (c >= args.cols) return;
  const int64_t at = row * args.stride + c;
  const Value value = apply<kActivation>(to_float(reinterpret_cast<const T*>(args.gate)[at]));
  const float dout = to_float(reinterpret_cast<const T*>(args.dout)[row * args.cols + c]);
  const float up = args.up ? to_float(reinterpret_cast<const T*>(args.up)[at]) : 1.0f;
  reinterpret_cast<T*>(args.dgate)[at] = from_float<T>(dout * up * value.slope);
  if (args.up) reinterpret_cast<T*>(args.dup)[at] = from_float<T>(dout * value.y);
}

/// Eight columns a thread, for aligned rows.
template <typename T, Activation kActivation>
__global__ void gradient_vectors(ActivateGradientArgs args) {
  const int64_t row = blockIdx.y;
  const int64_t c = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * 8;
  if (c >= args.cols) return;
  const int64_t at = row * args.stride + c;
  float gate[8], up[8], dout[8];
  Vector8<T>::load(reinterpret_cast<const T*>(args.gate) + at).unpack(gate);
  Vector8<T>::load(reinterpret_cast<const T*>(args.dout) + row * args.cols + c).unpack(dout);
  if (args.up) Vector8<T>::load(reinterpret_cast<const T*>(args.up) + at).unpack(up);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const Value value = apply<kActivation>(gate[i]);
    gate[i] = dout[i] * (args.up ? up[i] : 1.0f) * value.slope;
    up[i] = dout[i] * value.y;
  }
  Vector8<T>::pack(gate).store(reinterpret_cast<T*>(args.dgate) + at);
  if (args.up) Vector8<T>::pack(up).store(reinterpret_cast<T*>(args.dup) + at);
}

bool has_vectors(const ActivateGradientArgs& args) {
  return args.cols % 8 == 0 && args.stride % 8 == 0 && is_aligned(args.gate, 16) && is_aligned(args.up, 16) &&
         is_aligned(args.dout, 16) && is_aligned(args.dgate, 16) && is_aligned(args.dup, 16);
}

template <typename T, Activation kActivation>
void launch(const Context& context, ActivateGradientArgs args) {
  constexpr int64_t kMaxRows = 65535;  // of a grid
  const auto ahead = [](auto* pointer, int64_t elements) {
    using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(pointer)>>, const char, char>;
    auto* bytes = reinterpret_cast<Byte*>(pointer);
    return pointer ? reinterpret_cast<decltype(pointer)>(bytes + elements * static_cast<int64_t>(sizeof(T))) : pointer;
  };
  for (int64_t left = args.rows; left > 0; left -= kMaxRows) {
    const auto rows = static_cast<unsigned>(left < kMaxRows ? left : kMaxRows);
    const cudaStream_t stream = stream_of(context.stream);
    if (has_vectors(args))
      gradient_vectors<T, kActivation><<<dim3(blocks_for(args.cols / 8, 128), rows), 128, 0, stream>>>(args);
    else
      gradient_kernel<T, kActivation><<<dim3(blocks_for(args.cols, 256), rows), 256, 0, stream>>>(args);
    args.gate = ahead(args.gate, rows * args.stride);
    args.up = ahead(args.up, rows * args.stride);
    args.dout = ahead(args.dout, rows * args.cols);
    args.dgate = ahead(args.dgate, rows * args.stride);
    args.dup = ahead(args.dup, rows * args.stride);
  }
}

template <typename T>
void dispatch(const Context& context, const ActivateGradientArgs& args) {
  switch (args.activation) {
    case Activation::silu:
      return launch<T, Activation::silu>(context, args);
    case Activation::gelu:
      return launch<T, Activation::gelu>(context, args);
    case Activation::gelu_tanh:
      return launch<T, Activation::gelu_tanh>(context, args);
    case Activation::relu:
      return launch<T, Activation::relu>(context, args);
    case Activation::quick_gelu:
      return launch<T, Activation::quick_gelu>(context, args);
    case Activation::tanh_:
      return launch<T, Activation::tanh_>(context, args);
  }
}

}  // namespace

void activate_gradient(const Context& context, const ActivateGradientArgs& args) {
  if (args.rows == 0 || args.cols == 0) return;
  args.dtype == DType::bf16 ? dispatch<__nv_bfloat16>(context, args) : dispatch<float>(context, args);
}

}  // namespace nibble::kernels::cuda
