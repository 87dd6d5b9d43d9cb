// activate and softcap: functions of one element.
#include "kernels/cuda/device/activation.cuh"
#include "kernels/cuda/device/dependent.cuh"
#include "kernels/cuda/device/pack.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

/// Columns of a thread where rows' starts are aligned.
template <typename X>
constexpr int kPack = sizeof(X) == 2 ? 8 : 4;

template <Activation kActivation, typename X, typename Out>
__global__ void activate_vectors(ActivateArgs args) {
  constexpr int N = kPack<X>;
  wait_for_previous();
  const int64_t row = blockIdx.y;
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
  if (c >= args.cols) return;
  float value[N], up[N];
  load_pack(static_cast<const X*>(args.gate) + row * args.stride + c, value);
  if (args.up) load_pack(static_cast<const X*>(args.up) + row * args.stride + c, up);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    value[i] = apply<kActivation>(value[i]);
    if (args.up) value[i] *= up[i];
  }
  store_pack(static_cast<Out*>(args.out) + row * args.cols + c, value);
}

bool has_vectors(const ActivateArgs& args, int pack) {
  return args.cols % pack == 0 && args.stride % pack == 0 && is_packed(args.gate) && is_packed(args.up) &&
         is_packed(args.out);
}

template <Activation kActivation, typename X, typename Out>
__global__ void activate_kernel(ActivateArgs args) {
  wait_for_previous();
  const int64_t row = blockIdx.y;
  const X* gate = static_cast<const X*>(args.gate) + row * args.stride;
  const X* up = args.up ? static_cast<const X*>(args.up) + row * args.stride : nullptr;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c >= args.cols) return;
  const float value = apply<kActivation>(to_float(gate[c]));
  static_cast<Out*>(args.out)[row * args.cols + c] = from_float<Out>(up ? value * to_float(up[c]) : value);
}

template <Activation kActivation, typename X, typename Out>
void launch(const Context& context, const ActivateArgs& all) {
  constexpr int64_t kMaxRows = 65535;  // of a grid
  for (int64_t row = 0; row < all.rows; row += kMaxRows) {
    ActivateArgs args = all;
    args.gate = advanced(args.gate, row * all.stride, all.x_dtype);
    if (args.up) args.up = advanced(args.up, row * all.stride, all.x_dtype);
    args.out = advanced(args.out, row * all.cols, all.out_dtype);
    args.rows = all.rows - row < kMaxRows ? all.rows - row : kMaxRows;
    const auto rows = static_cast<unsigned>(args.rows);
    if (has_vectors(args, kPack<X>))
      launch_dependent(context, activate_vectors<kActivation, X, Out>,
                       dim3(blocks_for(args.cols / kPack<X>, 256), rows), 256, 0, args);
    else
      launch_dependent(context, activate_kernel<kActivation, X, Out>, dim3(blocks_for(args.cols, 256), rows), 256, 0,
                       args);
  }
}

template <Activation kActivation>
void launch(const Context& context, const ActivateArgs& args) {
  with_activation_type(args.x_dtype, [&](auto x) {
    with_activation_type(args.out_dtype,
                         [&](auto out) { launch<kActivation, decltype(x), decltype(out)>(context, args); });
  });
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
  const auto inside = [&](const void* x) {
    return x && args.out >= x && args.out < advanced(x, args.rows * args.stride, args.x_dtype);
  };
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
  const int64_t size_bytes = args.rows * args.cols * (args.out_dtype == DType::f32 ? 4 : 2);
  ActivateArgs apart = args;
  apart.out = context.scratch->reserve(size_bytes);
  dispatch(context, apart);
  cudaMemcpyAsync(args.out, apart.out, static_cast<size_t>(size_bytes), cudaMemcpyDeviceToDevice,
                  stream_of(context.stream));
}

void softcap(const Context& context, const SoftcapArgs& args) {
  if (args.count == 0) return;
  softcap_kernel<<<blocks_for(args.count, 256), 256, 0, stream_of(context.stream)>>>(args);
}

}  // namespace nibble::kernels::cuda
