// activate and softcap: functions of one element.
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

template <Activation kActivation>
__global__ void activate_kernel(ActivateArgs args) {
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
    const dim3 grid(blocks_for(args.cols, 256), static_cast<unsigned>(args.rows));
    activate_kernel<kActivation><<<grid, 256, 0, stream_of(context.stream)>>>(args);
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
