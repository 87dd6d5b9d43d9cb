// attention and cache_append: softmax attention over one sequence's keys and values at a time.
#include <cmath>
#include <numbers>
#include <vector>

#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {
namespace {

double alibi(const AttentionArgs& args, int64_t head, int64_t key) {
  const float position = round_to(args.alibi_dtype, static_cast<float>(key));
  if (args.alibi_dtype != DType::f32) return round_to(args.alibi_dtype, args.alibi_slopes[head] * position);
  return static_cast<double>(args.alibi_slopes[head]) * static_cast<double>(position);
}

/// One query head of one token.
void attend(const AttentionArgs& args, const AttentionSequence& sequence, int64_t token, int64_t head) {
  const int64_t dim = args.head_dim;
  const int64_t kv_head = head / (args.heads / args.kv_heads);
  const int64_t position = sequence.past + token;
  const int64_t end = args.is_causal ? position + 1 : sequence.keys;
  const int64_t begin = args.window > 0 ? std::max<int64_t>(0, position + 1 - args.window) : 0;
  const int64_t first_q = token * args.q_stride + head * dim;
  const auto scale_of = [&](const float* scales, int64_t key) {
    return args.kv_dtype == DType::i8 ? static_cast<double>(scales[kv_head * sequence.capacity + key]) : 1;
  };
  std::vector<double> scores(static_cast<size_t>(end - begin));
  double maximum = -INFINITY;
  for (int64_t key = begin; key < end; ++key) {
    const int64_t row = (kv_head * sequence.capacity + key) * dim;
    double score = 0;
    for (int64_t d = 0; d < dim; ++d)
      score += static_cast<double>(load(sequence.q, args.q_dtype, first_q + d)) *
               static_cast<double>(load(sequence.k, args.kv_dtype, row + d));
    score *= static_cast<double>(args.scale) * scale_of(sequence.k_scales, key);
    if (args.softcap > 0)
      score = static_cast<double>(args.softcap) * std::tanh(score / static_cast<double>(args.softcap));
    if (args.alibi_slopes) score += static_cast<double>(args.alibi_scale) * alibi(args, head, key);
    if (args.relative_bias)
      score += static_cast<double>(
          args.relative_bias[head * (2 * args.relative_span - 1) + key - position + args.relative_span - 1]);
    scores[static_cast<size_t>(key - begin)] = score;
    maximum = std::fmax(maximum, score);
  }
  double total = 0;
  for (double& score : scores) total += score = std::exp(score - maximum);
  if (sequence.lse2)
    sequence.lse2[head * args.lse_stride + token] =
        static_cast<float>((maximum + std::log(total)) * std::numbers::log2e);
  std::vector<double> sum(static_cast<size_t>(dim));
  for (int64_t key = begin; key < end; ++key) {
    const int64_t row = (kv_head * sequence.capacity + key) * dim;
    const double probability = scores[static_cast<size_t>(key - begin)] / total * scale_of(sequence.v_scales, key);
    for (int64_t d = 0; d < dim; ++d)
      sum[static_cast<size_t>(d)] += probability * static_cast<double>(load(sequence.v, args.kv_dtype, row + d));
  }
  const int64_t first_out = (token * args.heads + head) * dim;
  for (int64_t d = 0; d < dim; ++d)
    store(sequence.out, args.q_dtype, first_out + d, static_cast<float>(sum[static_cast<size_t>(d)]));
}

}  // namespace

void attention(const Context& context, const AttentionArgs& args) {
  for (int64_t s = 0; s < args.sequence_count; ++s) {
    const AttentionSequence& sequence = args.sequences[s];
    for_each(context, sequence.tokens * args.heads, 1,
             [&](int64_t index) { attend(args, sequence, index / args.heads, index % args.heads); });
  }
}

namespace {

/// One key or value into an i8 cache: its codes and its scale.
void append_codes(const CacheAppendArgs& args, int64_t first, int64_t row) {
  auto* codes = static_cast<int8_t*>(args.cache) + row * args.head_dim;
  const float absmax = block_absmax(args.x, args.x_dtype, first, first + args.head_dim);
  const float unit = absmax > 0 ? 127.0f / absmax : 0;
  for (int64_t d = 0; d < args.head_dim; ++d) {
    const float code = std::rint(load(args.x, args.x_dtype, first + d) * unit);
    codes[d] = static_cast<int8_t>(std::isnan(code) ? 0 : std::clamp(code, -127.0f, 127.0f));
  }
  args.scales[row] = absmax * (1.0f / 127.0f);
}

}  // namespace

void cache_append(const Context&, const CacheAppendArgs& args) {
  for (int64_t t = 0; t < args.tokens; ++t)
    for (int64_t head = 0; head < args.kv_heads; ++head) {
      const int64_t first = t * args.stride + head * args.head_dim, row = head * args.capacity + args.past + t;
      if (args.dtype == DType::i8) {
        append_codes(args, first, row);
        continue;
      }
      for (int64_t d = 0; d < args.head_dim; ++d)
        store(args.cache, args.dtype, row * args.head_dim + d, load(args.x, args.x_dtype, first + d));
    }
}

}  // namespace nibble::kernels::reference
