// A few neighbouring elements of an array of activations, as floats: moved in accesses of up to 16 bytes.
#pragma once

#include "kernels/cuda/device/element.cuh"

namespace nibble::kernels::cuda {

template <typename T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
  T at[N];
};

/// `from` is aligned to the pack.
template <int N, typename T>
__device__ __forceinline__ void load_pack(const T* from, float (&to)[N]) {
  const auto pack = *reinterpret_cast<const Pack<T, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = to_float(pack.at[i]);
}

template <int N, typename T>
__device__ __forceinline__ void store_pack(T* to, const float (&from)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.at[i] = from_float<T>(from[i]);
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

/// Calls body(T{}) with the type of activations: f32 or bf16.
template <typename Body>
void with_activation_type(DType dtype, const Body& body) {
  if (dtype == DType::bf16)
    body(__nv_bfloat16{});
  else
    body(float{});
}

/// `x` moved on by `count` elements of `dtype`.
inline const void* advanced(const void* x, int64_t count, DType dtype) {
  return static_cast<const char*>(x) + count * (dtype == DType::f32 ? 4 : 2);
}
inline void* advanced(void* x, int64_t count, DType dtype) {
  return static_cast<char*>(x) + count * (dtype == DType::f32 ? 4 : 2);
}

inline bool is_packed(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace nibble::kernels::cuda
