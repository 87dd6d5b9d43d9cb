// embed: rows of a table, converted and scaled. cache_append: rows into a sequence's cache.
#include "kernels/cpu/isa/simd.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

template <typename T>
void scaled_copy(const T* x, int64_t cols, float scale, float* out) {
  const F32 factor = set1(scale);
  int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) store(out + c, load(x + c) * factor);
  for (; c < cols; ++c) out[c] = scale * to_float(x[c]);
}

template <typename T>
void rounded_copy(const float* x, int64_t cols, T* out) {
  int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) store(out + c, load(x + c));
  for (; c < cols; ++c) out[c] = from_float<T>(x[c]);
}

}  // namespace

void embed(const Context& context, const EmbedArgs& args) {
  with_type(args.dtype, args.table, [&](const auto* table) {
    for_ranges(context, args.count, max_of(1, 32768 / max_of(1, args.cols)), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        scaled_copy(table + args.ids[i] * args.cols, args.cols, args.scale, args.out + i * args.cols);
    });
  });
}

void cache_append(const Context& context, const CacheAppendArgs& args) {
  const int64_t grain = max_of(1, 32768 / max_of(1, args.kv_heads * args.head_dim));
  with_type(args.dtype, args.cache, [&](auto* cache) {
    for_ranges(context, args.tokens, grain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        for (int64_t head = 0; head < args.kv_heads; ++head)
          rounded_copy(args.x + t * args.stride + head * args.head_dim, args.head_dim,
                       cache + (head * args.capacity + args.past + t) * args.head_dim);
    });
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
