// activate and softcap: functions of one element.
#include "kernels/cuda/device/dependent.cuh"
#include "kernels/cuda/device/element.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

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

/// Four columns a thread, for rows whose starts are aligned.
template <Activation kActivation>
__global__ void activate_vectors(ActivateArgs args) {
  wait_for_previous();
  const int64_t row = blockIdx.y;
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
  if (c >= args.cols) return;
  const float4 gate = *reinterpret_cast<const float4*>(args.gate + row * args.stride + c);
  float4 value = make_float4(apply<kActivation>(gate.x), apply<kActivation>(gate.y), apply<kActivation>(gate.z),
                             apply<kActivation>(gate.w));
  if (args.up) {
    const float4 up = *reinterpret_cast<const float4*>(args.up + row * args.stride + c);
    value = make_float4(value.x * up.x, value.y * up.y, value.z * up.z, value.w * up.w);
  }
  *reinterpret_cast<float4*>(args.out + row * args.cols + c) = value;
}

bool has_vectors(const ActivateArgs& args) {
  const auto is_aligned = [](const float* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  return args.cols % 4 == 0 && args.stride % 4 == 0 && is_aligned(args.gate) && is_aligned(args.up) &&
         is_aligned(args.out);
}

template <Activation kActivation>
__global__ void activate_kernel(ActivateArgs args) {
  wait_for_previous();
  const int64_t row = blockIdx.y;
  const float* gate = args.gate + row * args.stride;
  const float* up = args.up ? args.up + row * args.stride : nullptr;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c >= args.cols) return;
  const float value = apply<kActivation>(gate[c]);
  args.out[row * args.cols + c] = up ? value * up[c] : value;
}

template <Activation kActivation>
void launch(const Context& context, const ActivateArgs& all) {
  constexpr int64_t kMaxRows = 65535;  // of a grid
  for (int64_t row = 0; row < all.rows; row += kMaxRows) {
    ActivateArgs args = all;
    args.gate += row * all.stride;
    if (args.up) args.up += row * all.stride;
    args.out += row * all.cols;
    args.rows = all.rows - row < kMaxRows ? all.rows - row : kMaxRows;
    const auto rows = static_cast<unsigned>(args.rows);
    if (has_vectors(args))
      launch_dependent(context, activate_vectors<kActivation>, dim3(blocks_for(args.cols / 4, 256), rows), 256, 0,
                       args);
    else
      launch_dependent(context, activate_kernel<kActivation>, dim3(blocks_for(args.cols, 256), rows), 256, 0, args);
  }
}

void dispatch(const Context& context, const ActivateArgs& args) {
  switch (args.activation) {
    case Activation::silu:
      return launch<Activation::silu>(context, args);
    case Activation::gelu:
      return launch<Activation::gelu>(context, args);
    case Activation::gelu_tanh:
      return launch<Activation::gelu_tanh>(context, args);
    case Activation::relu:
      return launch<Activation::relu>(context, args);
    case Activation::quick_gelu:
      return launch<Activation::quick_gelu>(context, args);
    case Activation::tanh_:
      return launch<Activation::tanh_>(context, args);
  }
}

/// True if writing one row may destroy another that is still to be read.
bool overlaps(const ActivateArgs& args) {
  if (args.stride == args.cols || args.rows == 1) return false;
  const auto inside = [&](const float* x) { return x && args.out >= x && args.out < x + args.rows * args.stride; };
  return inside(args.gate) || inside(args.up);
}

__global__ void softcap_kernel(SoftcapArgs args) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < args.count) args.x[i] = args.cap * tanhf(args.x[i] / args.cap);
}

}  // namespace

void activate(const Context& context, const ActivateArgs& args) {
  if (args.rows == 0 || args.cols == 0) return;
  if (!overlaps(args)) return dispatch(context, args);
  const int64_t size_bytes = args.rows * args.cols * static_cast<int64_t>(sizeof(float));
  ActivateArgs apart = args;
  apart.out = static_cast<float*>(context.scratch->reserve(size_bytes));
  dispatch(context, apart);
  cudaMemcpyAsync(args.out, apart.out, static_cast<size_t>(size_bytes), cudaMemcpyDeviceToDevice,
                  stream_of(context.stream));
}

void softcap(const Context& context, const SoftcapArgs& args) {
  if (args.count == 0) return;
  softcap_kernel<<<blocks_for(args.count, 256), 256, 0, stream_of(context.stream)>>>(args);
}

}  // namespace nibble::kernels::cuda
