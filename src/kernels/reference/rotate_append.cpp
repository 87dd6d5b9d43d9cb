// rotate_append: rope and cache_append of every sequence, one after the other.
#include <vector>

#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {

// Keys are rotated in fp32 whatever their type: they are rounded once, into the cache.
void rotate_append(const Context& context, const RotateAppendArgs& args) {
  const int64_t half = args.rotary_dim / 2, width = args.kv_heads * args.head_dim;
  int64_t row = 0;
  for (int64_t s = 0; s < args.sequence_count; ++s) {
    const AttentionSequence& sequence = args.sequences[s];
    const int64_t tokens = sequence.tokens;
    const auto rows_of = [&](const void* x, int64_t stride) {
      std::vector<float> rows(static_cast<size_t>(tokens * width));
      for (int64_t t = 0; t < tokens; ++t)
        for (int64_t i = 0; i < width; ++i)
          rows[static_cast<size_t>(t * width + i)] = load(x, args.x_dtype, (row + t) * stride + i);
      return rows;
    };
    std::vector<float> k = rows_of(args.k, args.k_stride);
    const std::vector<float> v = rows_of(args.v, args.v_stride);
    if (args.rotary_dim > 0) {
      const float* cos = args.cos + row * half;
      const float* sin = args.sin + row * half;
      auto* q = static_cast<std::byte*>(args.q) + row * args.q_stride * size_of(args.x_dtype);
      rope(context, {q, args.q_stride, cos, sin, tokens, args.heads, args.head_dim, args.rotary_dim, args.interleaved,
                     args.x_dtype});
      rope(context,
           {k.data(), width, cos, sin, tokens, args.kv_heads, args.head_dim, args.rotary_dim, args.interleaved});
    }
    const auto append = [&](const float* x, const void* cache, float* scales) {
      cache_append(context, {.x = x,
                             .stride = width,
                             .cache = const_cast<void*>(cache),
                             .dtype = args.kv_dtype,
                             .capacity = sequence.capacity,
                             .tokens = tokens,
                             .past = sequence.past,
                             .kv_heads = args.kv_heads,
                             .head_dim = args.head_dim,
                             .scales = scales});
    };
    append(k.data(), sequence.k, sequence.k_scales);
    append(v.data(), sequence.v, sequence.v_scales);
    row += tokens;
  }
}

}  // namespace nibble::kernels::reference
