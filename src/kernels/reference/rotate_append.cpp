// rotate_append: rope and cache_append of every sequence, one after the other.
#include <vector>

#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {

void rotate_append(const Context& context, const RotateAppendArgs& args) {
  const int64_t half = args.rotary_dim / 2, width = args.kv_heads * args.head_dim;
  int64_t row = 0;
  for (int64_t s = 0; s < args.sequence_count; ++s) {
    const AttentionSequence& sequence = args.sequences[s];
    const int64_t tokens = sequence.tokens;
    std::vector<float> k(static_cast<size_t>(tokens * width));
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t i = 0; i < width; ++i) k[static_cast<size_t>(t * width + i)] = args.k[(row + t) * args.k_stride + i];
    if (args.rotary_dim > 0) {
      const float* cos = args.cos + row * half;
      const float* sin = args.sin + row * half;
      rope(context, {args.q + row * args.q_stride, args.q_stride, cos, sin, tokens, args.heads, args.head_dim,
                     args.rotary_dim, args.interleaved});
      rope(context,
           {k.data(), width, cos, sin, tokens, args.kv_heads, args.head_dim, args.rotary_dim, args.interleaved});
    }
    const auto append = [&](const float* x, int64_t stride, const void* cache) {
      cache_append(context, {x, stride, const_cast<void*>(cache), args.kv_dtype, sequence.capacity, tokens,
                             sequence.past, args.kv_heads, args.head_dim});
    };
    append(k.data(), width, sequence.k);
    append(args.v + row * args.v_stride, args.v_stride, sequence.v);
    row += tokens;
  }
}

}  // namespace nibble::kernels::reference
