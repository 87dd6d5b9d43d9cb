// attention_gradient: one task a sequence and kv head; blocks of queries against all keys that they see.
#include "kernels/cpu/isa/attention_tile.h"
#include "kernels/cpu/scratch.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

constexpr int64_t kQueries = 48;  // a multiple of the register tile's six

/// Working memory of one task. Widths are padded to whole vectors with zeros.
struct Work {
  int64_t dim, tokens;       // padded; of keys
  float *keys, *values;      // (tokens, dim)
  float *keys_t, *values_t;  // (dim, tokens)
  float *dkeys, *dvalues;    // (tokens, dim)
  float *q, *dout;           // (kQueries, dim)
  float* dq;                 // (kQueries, dim)
  float *p, *ds;             // (kQueries, tokens): probabilities, gradients of the scores
  float* turned;             // (tokens, kQueries)
  float* mean;               // (kQueries)
};

Work make_work(int64_t head_dim, int64_t token_count) {
  Work w;
  w.dim = padded(head_dim);
  w.tokens = padded(token_count);
  const int64_t rows = w.tokens * w.dim, block = kQueries * w.dim, scores = kQueries * w.tokens;
  auto* memory = static_cast<float*>(
      scratch(Scratch::gradient, (6 * rows + 3 * block + 3 * scores + kQueries) * int64_t{sizeof(float)}));
  const auto take = [&](int64_t count) {
    float* taken = memory;
    memory += count;
    return taken;
  };
  w.keys = take(rows), w.values = take(rows), w.keys_t = take(rows), w.values_t = take(rows);
  w.dkeys = take(rows), w.dvalues = take(rows);
  w.q = take(block), w.dout = take(block), w.dq = take(block);
  w.p = take(scores), w.ds = take(scores), w.turned = take(scores);
  w.mean = take(kQueries);
  return w;
}

/// (rows, cols) to (cols, rows), both dense with the given strides.
void turn(const float* x, int64_t stride, int64_t rows, int64_t cols, float* out, int64_t out_stride) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) out[c * out_stride + r] = x[r * stride + c];
}

void fill_zero(float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = 0;
}

void load_keys(const AttentionGradientArgs& args, const AttentionGradientSequence& s, int64_t kv_head, const Work& w) {
  const int64_t stride = args.kv_heads * args.head_dim, at = kv_head * args.head_dim;
  const int64_t keys = s.key_count();
  unpack_rows_strided(s.k + at, stride, keys, args.head_dim, w.keys, w.dim);
  unpack_rows_strided(s.v + at, stride, keys, args.head_dim, w.values, w.dim);
  fill_zero(w.keys_t, w.dim * w.tokens);
  fill_zero(w.values_t, w.dim * w.tokens);
  turn(w.keys, w.dim, keys, w.dim, w.keys_t, w.tokens);
  turn(w.values, w.dim, keys, w.dim, w.values_t, w.tokens);
  fill_zero(w.dkeys, w.dim * w.tokens);
  fill_zero(w.dvalues, w.dim * w.tokens);
}

/// Scores to probabilities, and their gradients to those of the scores: row i is the query at `position` + i.
void softmax_rows(const AttentionGradientArgs& args, const Work& w, int64_t head, int64_t position, int64_t count,
                  int64_t low, int64_t width, int64_t keys) {
  AttentionArgs biases{};
  biases.softcap = args.softcap;
  biases.alibi_slopes = args.alibi_slopes;
  biases.alibi_dtype = args.alibi_dtype;
  biases.alibi_scale = args.alibi_scale;
  biases.relative_bias = args.relative_bias;
  biases.relative_span = args.relative_span;
  for (int64_t i = 0; i < count; ++i) {
    float *p = w.p + i * w.tokens, *ds = w.ds + i * w.tokens;
    for (int64_t j = 0; j < width; j += kLanes) {
      const F32 score = load(p + j) * set1(args.scale);
      F32 slope = load(ds + j) - set1(w.mean[i]);
      if (args.softcap > 0) {
        const F32 turned = tanh(score / set1(args.softcap));
        slope = slope * (set1(1) - turned * turned);
      }
      store(p + j, score);
      store(ds + j, slope);
    }
    adjust_scores(p, width, biases, head, position + i, low);
    const int64_t first = args.window > 0 ? max_of(0, position + i + 1 - args.window) : 0;
    for (int64_t j = 0; j < first - low; ++j) p[j] = -__builtin_inff();
    for (int64_t j = (args.is_causal ? position + i + 1 : keys) - low; j < width; ++j) p[j] = -__builtin_inff();
    const float total = exponentiate(p, width, largest_score(p, width));
    const F32 share = set1(1.0f / total), scale = set1(args.scale);
    for (int64_t j = 0; j < width; j += kLanes) {
      const F32 probability = load(p + j) * share;
      store(p + j, probability);
      store(ds + j, probability * load(ds + j) * scale);
    }
  }
}

/// The gradients of scores, which lie in w.ds times args.scale, into those of the biases that were added to them.
void add_to_biases(const AttentionGradientArgs& args, const Work& w, int64_t head, int64_t position, int64_t count,
                   int64_t low, int64_t keys) {
  const int64_t span = args.relative_span;
  const float inverse = 1.0f / args.scale;
  for (int64_t i = 0; i < count; ++i) {
    float* out = args.drelative_bias + head * (2 * span - 1) + low - (position + i) + span - 1;
    const float* ds = w.ds + i * w.tokens;
    for (int64_t j = 0; j < keys; ++j) out[j] += ds[j] * inverse;
  }
}

/// Queries [position, position + count) of one head.
void gradient_block(const AttentionGradientArgs& args, const AttentionGradientSequence& s, const Work& w, int64_t head,
                    int64_t position, int64_t count) {
  const int64_t stride = args.heads * args.head_dim, at = position * stride + head * args.head_dim;
  unpack_rows_strided(s.q + at, stride, count, args.head_dim, w.q, w.dim);
  unpack_rows_strided(s.dout + at, stride, count, args.head_dim, w.dout, w.dim);
  for (int64_t i = 0; i < count; ++i) {
    float sum = 0;
    for (int64_t d = 0; d < args.head_dim; ++d) sum += s.out[at + i * stride + d] * s.dout[at + i * stride + d];
    w.mean[i] = sum;
  }
  // Keys before the first that any of these queries sees are left out, in whole vectors.
  const int64_t low = args.window > 0 ? max_of(0, position + 1 - args.window) / kLanes * kLanes : 0;
  const int64_t key_count = s.key_count(), width = padded((args.is_causal ? position + count : key_count) - low);
  multiply(w.q, w.dim, count, w.keys_t + low, w.tokens, w.dim, width, w.p, w.tokens, false);
  multiply(w.dout, w.dim, count, w.values_t + low, w.tokens, w.dim, width, w.ds, w.tokens, false);
  softmax_rows(args, w, head, position, count, low, width, key_count);
  multiply(w.ds, w.tokens, count, w.keys + low * w.dim, w.dim, min_of(width, key_count - low), w.dim, w.dq, w.dim,
           false);
  for (int64_t i = 0; i < count; ++i)
    for (int64_t d = 0; d < args.head_dim; ++d) s.dq[at + i * stride + d] = w.dq[i * w.dim + d];
  const int64_t keys = min_of(width, key_count - low);
  if (args.drelative_bias) add_to_biases(args, w, head, position, count, low, keys);
  turn(w.ds, w.tokens, count, keys, w.turned, kQueries);
  multiply(w.turned, kQueries, keys, w.q, w.dim, count, w.dim, w.dkeys + low * w.dim, w.dim, true);
  turn(w.p, w.tokens, count, keys, w.turned, kQueries);
  multiply(w.turned, kQueries, keys, w.dout, w.dim, count, w.dim, w.dvalues + low * w.dim, w.dim, true);
}

void gradient_task(const AttentionGradientArgs& args, const AttentionGradientSequence& s, int64_t kv_head) {
  const Work w = make_work(args.head_dim, s.key_count());
  load_keys(args, s, kv_head, w);
  const int64_t group = args.heads / args.kv_heads;
  for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
    for (int64_t position = 0; position < s.tokens; position += kQueries)
      gradient_block(args, s, w, head, position, min_of(kQueries, s.tokens - position));
  for (int64_t t = 0; t < s.key_count(); ++t)
    for (int64_t d = 0; d < args.head_dim; ++d) {
      const int64_t to = (t * args.kv_heads + kv_head) * args.head_dim + d;
      s.dk[to] = w.dkeys[t * w.dim + d];
      s.dv[to] = w.dvalues[t * w.dim + d];
    }
}

}  // namespace

void attention_gradient(const Context& context, const AttentionGradientArgs& args) {
  // Trained biases belong to a head: its sequences are one task then.
  const int64_t joined = args.drelative_bias ? args.sequence_count : 1;
  for_ranges(context, args.sequence_count * args.kv_heads / joined, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item)
      for (int64_t s = 0; s < joined; ++s)
        gradient_task(args, args.sequences[item / args.kv_heads + s], item % args.kv_heads);
  });
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
