// Eight elements of f32, bf16 or f16 in registers, moved in 16-byte accesses.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/element.cuh"

namespace nibble::kernels::cuda {

inline bool is_aligned(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

template <typename T>
struct Vector8 {
  uint4 words[sizeof(T) / 2];

  __device__ static __forceinline__ Vector8 load(const T* from) {
    Vector8 v;
#pragma unroll
    for (unsigned i = 0; i < sizeof(T) / 2; ++i) v.words[i] = __ldcs(reinterpret_cast<const uint4*>(from) + i);
    return v;
  }
  /// What will be read again soon.
  __device__ static __forceinline__ Vector8 load_cached(const T* from) {
    Vector8 v;
#pragma unroll
    for (unsigned i = 0; i < sizeof(T) / 2; ++i) v.words[i] = reinterpret_cast<const uint4*>(from)[i];
    return v;
  }
  __device__ __forceinline__ void store(T* to) const {
#pragma unroll
    for (unsigned i = 0; i < sizeof(T) / 2; ++i) __stcs(reinterpret_cast<uint4*>(to) + i, words[i]);
  }
  __device__ __forceinline__ void unpack(float (&values)[8]) const {
    const uint32_t* w = reinterpret_cast<const uint32_t*>(words);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if constexpr (sizeof(T) == 4) {
        values[i] = __uint_as_float(w[i]);
      } else {
        const unsigned short bits = static_cast<unsigned short>(w[i / 2] >> (16 * (i % 2)));
        if constexpr (__is_same(T, __half))
          values[i] = __half2float(__ushort_as_half(bits));
        else
          values[i] = __uint_as_float(uint32_t{bits} << 16);
      }
    }
  }
  /// Magnitude, of what is not NaN.
  __device__ __forceinline__ float largest() const {
    float values[8], result = 0;
    unpack(values);
#pragma unroll
    for (const float value : values) result = fmaxf(result, fabsf(value));
    return result;
  }
  __device__ static __forceinline__ Vector8 pack(const float (&values)[8]) {
    Vector8 v;
    uint32_t* w = reinterpret_cast<uint32_t*>(v.words);
#pragma unroll
    for (int i = 0; i < 8; i += sizeof(T) == 4 ? 1 : 2) {
      if constexpr (sizeof(T) == 4) {
        w[i] = __float_as_uint(values[i]);
      } else if constexpr (__is_same(T, __half)) {
        const __half2 pair = __floats2half2_rn(values[i], values[i + 1]);
        w[i / 2] = reinterpret_cast<const uint32_t&>(pair);
      } else {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(values[i], values[i + 1]);
        w[i / 2] = reinterpret_cast<const uint32_t&>(pair);
      }
    }
    return v;
  }
};

}  // namespace nibble::kernels::cuda
