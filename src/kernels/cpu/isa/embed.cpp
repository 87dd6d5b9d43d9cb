// embed: rows of a table, converted and scaled. cache_append: rows into a sequence's cache. split_heads,
// scatter_add_rows: rows moved and added.
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

/// out += scale * x, the product rounded by itself.
template <typename T>
void scaled_add(const T* x, int64_t cols, float scale, float* out) {
  const F32 factor = set1(scale);
  int64_t c = 0;
  for (; c + kLanes <= cols; c += kLanes) store(out + c, load(out + c) + load(x + c) * factor);
  for (; c < cols; ++c) out[c] += scale * to_float(x[c]);
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
      for (int64_t i = begin; i < end; ++i) {
        const auto* row = table + args.ids[i] * args.cols;
        float* out = args.out_f32() + i * args.cols;
        args.accumulate ? scaled_add(row, args.cols, args.scale, out) : scaled_copy(row, args.cols, args.scale, out);
      }
    });
  });
}

void cache_append(const Context& context, const CacheAppendArgs& args) {
  const int64_t grain = max_of(1, 32768 / max_of(1, args.kv_heads * args.head_dim));
  with_type(args.dtype, args.cache, [&](auto* cache) {
    for_ranges(context, args.tokens, grain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        for (int64_t head = 0; head < args.kv_heads; ++head)
          rounded_copy(args.x_f32() + t * args.stride + head * args.head_dim, args.head_dim,
                       cache + (head * args.capacity + args.past + t) * args.head_dim);
    });
  });
}

void split_heads(const Context& context, const SplitHeadsArgs& args) {
  const int64_t q_width = args.q_per_group * args.head_dim, kv_width = args.kv_per_group * args.head_dim;
  const int64_t width = q_width + 2 * kv_width;
  for_ranges(context, args.tokens * args.groups, max_of(1, 32768 / width), [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {  // q, k and v are dense over (token, group)
      const float* x = args.x_f32() + group * width;
      rounded_copy(x, q_width, args.q_f32() + group * q_width);
      rounded_copy(x + q_width, kv_width, args.k_f32() + group * kv_width);
      rounded_copy(x + q_width + kv_width, kv_width, args.v_f32() + group * kv_width);
    }
  });
}

void scatter_add_rows(const Context& context, const ScatterAddRowsArgs& args) {
  for_ranges(context, args.count, max_of(1, 32768 / max_of(1, args.cols)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      scaled_add(args.x + i * args.cols, args.cols, args.weights[i], args.out + args.rows[i] * args.cols);
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
