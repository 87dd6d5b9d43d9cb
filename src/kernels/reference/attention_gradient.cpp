// attention_gradient: one query at a time, in double.
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/reference/element.h"
#include "kernels/reference/entries.h"

namespace nibble::kernels::reference {
namespace {

using Rows = std::vector<double>;

double dot(const float* a, const float* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

double alibi(const AttentionGradientArgs& args, int64_t head, int64_t key) {
  const float position = round_to(args.alibi_dtype, static_cast<float>(key));
  if (args.alibi_dtype != DType::f32)
    return static_cast<double>(round_to(args.alibi_dtype, args.alibi_slopes[head] * position));
  return static_cast<double>(args.alibi_slopes[head]) * static_cast<double>(position);
}

/// The keys [begin, end) that the query at `position` sees.
struct Seen {
  int64_t begin, end;
};
Seen keys_of(const AttentionGradientArgs& args, const AttentionGradientSequence& s, int64_t position) {
  return {args.window > 0 ? std::max<int64_t>(0, position + 1 - args.window) : 0,
          args.is_causal ? position + 1 : s.key_count()};
}

/// Probabilities of the keys that one query head sees; `slopes`: those of the soft cap at each score.
Rows probabilities(const AttentionGradientArgs& args, const AttentionGradientSequence& s, int64_t position,
                   int64_t head, const Seen& seen, Rows& slopes) {
  const int64_t kv_head = head / (args.heads / args.kv_heads), dim = args.head_dim;
  Rows p;
  for (int64_t key = seen.begin; key < seen.end; ++key) {
    double score = static_cast<double>(args.scale) *
                   dot(s.q + (position * args.heads + head) * dim, s.k + (key * args.kv_heads + kv_head) * dim, dim);
    double slope = 1;
    if (args.softcap > 0) {
      const auto cap = static_cast<double>(args.softcap);
      const double turned = std::tanh(score / cap);
      score = cap * turned;
      slope = 1 - turned * turned;
    }
    slopes.push_back(slope);
    if (args.relative_bias)
      score += static_cast<double>(
          args.relative_bias[head * (2 * args.relative_span - 1) + key - position + args.relative_span - 1]);
    if (args.alibi_slopes) score += static_cast<double>(args.alibi_scale) * alibi(args, head, key);
    p.push_back(score);
  }
  const double largest = *std::max_element(p.begin(), p.end());
  double total = 0;
  for (double& score : p) total += score = std::exp(score - largest);
  for (double& score : p) score /= total;
  return p;
}

void sequence_gradient(const AttentionGradientArgs& args, const AttentionGradientSequence& s, int64_t kv_head) {
  const int64_t group = args.heads / args.kv_heads, dim = args.head_dim;
  const auto size = static_cast<size_t>(s.key_count() * dim);
  Rows dk(size), dv(size);
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
    for (int64_t position = 0; position < s.tokens; ++position) {
      const Seen seen = keys_of(args, s, position);
      Rows slopes;
      const Rows p = probabilities(args, s, position, head, seen, slopes);
      const int64_t row = (position * args.heads + head) * dim;
      const double mean = dot(s.out + row, s.dout + row, dim);
      Rows dq(static_cast<size_t>(dim));
      for (int64_t key = seen.begin; key < seen.end; ++key) {
        const int64_t at = (key * args.kv_heads + kv_head) * dim;
        const double probability = p[static_cast<size_t>(key - seen.begin)];
        const double dscore = probability * (dot(s.dout + row, s.v + at, dim) - mean);
        if (args.drelative_bias)
          args.drelative_bias[head * (2 * args.relative_span - 1) + key - position + args.relative_span - 1] +=
              static_cast<float>(dscore);
        const double ds = dscore * slopes[static_cast<size_t>(key - seen.begin)] * static_cast<double>(args.scale);
        for (int64_t d = 0; d < dim; ++d) {
          dq[static_cast<size_t>(d)] += ds * static_cast<double>(s.k[at + d]);
          dk[static_cast<size_t>(key * dim + d)] += ds * static_cast<double>(s.q[row + d]);
          dv[static_cast<size_t>(key * dim + d)] += probability * static_cast<double>(s.dout[row + d]);
        }
      }
      for (int64_t d = 0; d < dim; ++d) s.dq[row + d] = static_cast<float>(dq[static_cast<size_t>(d)]);
    }
  }
  for (int64_t key = 0; key < s.key_count(); ++key)
    for (int64_t d = 0; d < dim; ++d) {
      const int64_t at = (key * args.kv_heads + kv_head) * dim + d;
      s.dk[at] = static_cast<float>(dk[static_cast<size_t>(key * dim + d)]);
      s.dv[at] = static_cast<float>(dv[static_cast<size_t>(key * dim + d)]);
    }
}

}  // namespace

void attention_gradient(const Context& context, const AttentionGradientArgs& args) {
  // A head's sequences one after the other: they share its biases.
  for_each(context, args.kv_heads, 1, [&](int64_t kv_head) {
    for (int64_t s = 0; s < args.sequence_count; ++s) sequence_gradient(args, args.sequences[s], kv_head);
  });
}

}  // namespace nibble::kernels::reference
