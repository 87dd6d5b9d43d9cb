// The absmax of a block on the device, plain or nested, with the two roundings of the reference.
#pragma once

#include "kernels/cuda/device/element.cuh"
#include "kernels/kernels.h"
#include "quant/format.h"

namespace nibble::kernels::cuda {

__device__ __forceinline__ float nested_value(float book_value, float nested_absmax, float offset) {
  return __fadd_rn(__fmul_rn(book_value, nested_absmax), offset);
}

__device__ __forceinline__ float absmax_at(const Absmax& absmax, int64_t block) {
  if (absmax.values) return absmax.values[block];
  return nested_value(absmax.nested_code_book[absmax.codes[block]], absmax.nested_absmax[block / quant::kNestedBlock],
                      absmax.offset);
}

}  // namespace nibble::kernels::cuda
