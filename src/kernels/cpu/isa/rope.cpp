// rope: rotates pairs of each head's first rotary_dim elements.
#include "kernels/cpu/isa/simd.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

NIBBLE_SIMD void rotate(float& first, float& second, float cos, float sin) {
  const float a = first, b = second;
  first = a * cos - b * sin;
  second = b * cos + a * sin;
}

void rotate_halves(float* x, const float* cos, const float* sin, int64_t half) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const F32 a = load(x + i), b = load(x + i + half), c = load(cos + i), s = load(sin + i);
    store(x + i, a * c - b * s);
    store(x + i + half, b * c + a * s);
  }
  for (; i < half; ++i) rotate(x[i], x[i + half], cos[i], sin[i]);
}

void rotate_neighbours(float* x, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) rotate(x[2 * i], x[2 * i + 1], cos[i], sin[i]);
}

}  // namespace

void rope(const Context& context, const RopeArgs& args) {
  const int64_t half = args.rotary_dim / 2;
  const int64_t grain = max_of(1, 16384 / max_of(1, args.heads * args.rotary_dim));
  for_ranges(context, args.tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t head = 0; head < args.heads; ++head) {
        float* x = args.x_f32() + t * args.stride + head * args.head_dim;
        if (args.interleaved)
          rotate_neighbours(x, args.cos + t * half, args.sin + t * half, half);
        else
          rotate_halves(x, args.cos + t * half, args.sin + t * half, half);
      }
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
