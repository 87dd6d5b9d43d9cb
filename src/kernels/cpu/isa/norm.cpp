// rms_norm and layer_norm: two or three passes over a row that stays in the first cache.
#include "kernels/cpu/isa/simd.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

/// Sum of body(x) over a row; four partial sums, always added in the same order.
template <typename Body>
NIBBLE_SIMD float sum_over(const float* x, int64_t cols, Body&& body) {
  F32 sums[4] = {set1(0), set1(0), set1(0), set1(0)};
  int64_t c = 0;
  for (; c + 4 * kLanes <= cols; c += 4 * kLanes)
    for (int i = 0; i < 4; ++i) sums[i] = sums[i] + body(load(x + c + i * kLanes));
  for (; c + kLanes <= cols; c += kLanes) sums[0] = sums[0] + body(load(x + c));
  float rest = 0;
  if (c < cols) {
    float terms[kLanes];
    store(terms, body(load_some(x + c, cols - c)));
    for (int64_t i = 0; i < cols - c; ++i) rest += terms[i];
  }
  return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

/// out[c] = body(x[c], c) over a row: body sees full vectors or, at the end, `n` elements.
template <typename Body>
NIBBLE_SIMD void map_row(const float* x, int64_t cols, float* out, Body&& body) {
  int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) store(out + c, body(load(x + c), c, kLanes));
  if (c < cols) store_some(out + c, body(load_some(x + c, cols - c), c, cols - c), cols - c);
}

void rms_norm_row(const RmsNormArgs& args, int64_t r) {
  const float* x = args.x_f32() + r * args.cols;
  const float squares = sum_over(x, args.cols, [](F32 v) { return v * v; });
  const F32 scale = set1(1.0f / __builtin_sqrtf(squares / static_cast<float>(args.cols) + args.eps));
  const F32 offset = set1(args.weight_offset);
  float* out = args.out_f32() + r * args.cols;
  const auto value = [&](F32 v, int64_t c, int64_t n) { return v * scale * (load_first(args.weight + c, n) + offset); };
  if (args.accumulate)
    map_row(x, args.cols, out, [&](F32 v, int64_t c, int64_t n) { return load_first(out + c, n) + value(v, c, n); });
  else
    map_row(x, args.cols, out, value);
}

void layer_norm_row(const LayerNormArgs& args, int64_t r) {
  const float* x = args.x_f32() + r * args.cols;
  const auto cols = static_cast<float>(args.cols);
  const F32 mean = set1(sum_over(x, args.cols, [](F32 v) { return v; }) / cols);
  const float squares = sum_over(x, args.cols, [&](F32 v) { return (v - mean) * (v - mean); });
  const F32 scale = set1(1.0f / __builtin_sqrtf(squares / cols + args.eps));
  const int64_t set = r % args.sets * args.cols;
  map_row(x, args.cols, args.out_f32() + r * args.cols, [&](F32 v, int64_t c, int64_t n) {
    const F32 bias = args.bias ? load_first(args.bias + set + c, n) : set1(0);
    return fma((v - mean) * scale, load_first(args.weight + set + c, n), bias);
  });
}

}  // namespace

void rms_norm(const Context& context, const RmsNormArgs& args) {
  for_ranges(context, args.rows, max_of(1, 16384 / max_of(1, args.cols)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) rms_norm_row(args, r);
  });
}

void layer_norm(const Context& context, const LayerNormArgs& args) {
  for_ranges(context, args.rows, max_of(1, 16384 / max_of(1, args.cols)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) layer_norm_row(args, r);
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
