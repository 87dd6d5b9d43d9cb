// A run of elements of a weight of any kind as floats.
#pragma once

#include "kernels/cpu/isa/dequantize_4bit_lanes.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

NIBBLE_SIMD float block_absmax_of(const Absmax& absmax, int64_t b) {
  if (absmax.values) return absmax.values[b];
  const float difference = absmax.nested_code_book[absmax.codes[b]] * absmax.nested_absmax[b / quant::kNestedBlock];
  return difference + absmax.offset;
}

static inline void decode_range_4bit(const WeightView& w, int64_t begin, int64_t count, float* out) {
  const auto* packed = static_cast<const uint8_t*>(w.data);
  for (int64_t i = begin, end = begin + count; i < end;) {
    const int64_t block = i / w.block, last = min_of(end, (block + 1) * w.block);
    const float absmax = block_absmax_of(*w.absmax, block);
    const auto outputs = make_outputs(w.code_book, absmax, out);
    if (i % 2 == 0)
      for (; i + 32 <= last; i += 32) look_up_32(outputs, packed + i / 2, out + i - begin, false);
    for (; i < last; ++i) out[i - begin] = w.code_book[(packed[i / 2] >> (i % 2 ? 0 : 4)) & 15] * absmax;
  }
}

template <typename T>
NIBBLE_SIMD void widen(const T* x, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load(x + i));
  for (; i < count; ++i) out[i] = to_float(x[i]);
}

/// Elements [begin, begin + count) of row `row` of a weight of `cols` columns, in fp32.
static inline void decode_range(const WeightView& w, int64_t cols, int64_t row, int64_t begin, int64_t count,
                                float* out) {
  const int64_t at = row * cols + begin;
  if (w.kind == WeightView::Kind::four_bit) return decode_range_4bit(w, at, count, out);
  if (w.kind == WeightView::Kind::dense)
    return with_type(w.dtype, w.data, [&](const auto* x) { widen(x + at, count, out); });
  const auto* q = static_cast<const int8_t*>(w.data) + at;
  const float scale = w.row_absmax[row], share = 1.0f / 127.0f;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load(q + i) * set1(scale) * set1(share));
  for (; i < count; ++i) out[i] = static_cast<float>(q[i]) * scale * share;
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
