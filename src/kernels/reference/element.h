// Reading and writing one element of an array whose type is known at run time; the loop that all entries share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "base/half.h"
#include "kernels/kernels.h"
#include "quant/encode.h"

namespace nibble::kernels::reference {

inline float load(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::bf16:
      return to_float(static_cast<const bf16_t*>(data)[i]);
    case DType::f16:
      return to_float(static_cast<const f16_t*>(data)[i]);
    case DType::i8:
      return static_cast<const int8_t*>(data)[i];
    default:
      return static_cast<const float*>(data)[i];
  }
}

inline void store(void* data, DType dtype, int64_t i, float value) {
  switch (dtype) {
    case DType::bf16:
      static_cast<bf16_t*>(data)[i] = to_bf16(value);
      break;
    case DType::f16:
      static_cast<f16_t*>(data)[i] = to_f16(value);
      break;
    default:
      static_cast<float*>(data)[i] = value;
  }
}

/// The value that survives storage in `dtype`.
inline float round_to(DType dtype, float value) {
  switch (dtype) {
    case DType::bf16:
      return to_float(to_bf16(value));
    case DType::f16:
      return to_float(to_f16(value));
    default:
      return value;
  }
}

/// Writes or adds a gradient, rounded to fp32 first.
inline void put(float& target, double value, bool accumulate) {
  target = accumulate ? target + static_cast<float>(value) : static_cast<float>(value);
}

/// body(i) for i in [0, count), `chunk` indices at a time on one thread.
template <typename Body>
void for_each(const Context& context, int64_t count, int64_t chunk, const Body& body) {
  auto run_chunk = [&](int64_t index, int) {
    const int64_t end = std::min(count, (index + 1) * chunk);
    for (int64_t i = index * chunk; i < end; ++i) body(i);
  };
  const int64_t chunks = (count + chunk - 1) / chunk;
  if (context.pool) {
    context.pool->parallel_for(chunks, run_chunk);
  } else {
    for (int64_t index = 0; index < chunks; ++index) run_chunk(index, 0);
  }
}

/// Largest magnitude in [begin, end) of an array to quantize; NaN does not count, and a denormal one is zero.
inline float block_absmax(const void* data, DType dtype, int64_t begin, int64_t end) {
  float absmax = 0;
  for (int64_t i = begin; i < end; ++i) absmax = std::fmax(absmax, std::fabs(load(data, dtype, i)));
  return quant::flush_denormal(absmax);
}

/// Absmax of block b, nested or not.
inline float absmax_of(const Absmax& absmax, int64_t b) {
  if (absmax.values) return absmax.values[b];
  const float difference = absmax.nested_code_book[absmax.codes[b]] * absmax.nested_absmax[b / quant::kNestedBlock];
  return difference + absmax.offset;
}

/// Code of element i: the first of a byte's two lies in the high half.
inline uint8_t code_4bit(const uint8_t* packed, int64_t i) {
  const uint8_t byte = packed[i / 2];
  return i % 2 == 0 ? byte >> 4 : byte & 15;
}

}  // namespace nibble::kernels::reference
