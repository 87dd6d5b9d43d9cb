// Attention of one new token: the heads of a group share each load of a key or value.
#include "kernels/cpu/isa/attention_tile.h"
#include "kernels/cpu/scratch.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

struct Chunk {
  int64_t group, dim, stride;  // stride: dim padded to whole vectors
  int64_t first, count;        // keys
  float* q;                    // (group, stride), scaled
  float* scores;               // (group, kDecodeKeys)
  float* rows;                 // (kDecodeKeys, stride): keys or values as floats, where they need conversion
};

/// scores (group) x (kLanes keys) = q . keys^T
NIBBLE_SIMD void score_keys(const Chunk& chunk, const float* keys, int64_t stride, float* scores) {
  for (int64_t g = 0; g < chunk.group; ++g) {
    F32 sums[kLanes];
    for (int i = 0; i < kLanes; ++i) sums[i] = set1(0);
    for (int64_t d = 0; d < chunk.stride; d += kLanes) {
      const F32 q = load(chunk.q + g * chunk.stride + d);
      for (int i = 0; i < kLanes; ++i) sums[i] = fma(q, load(keys + i * stride + d), sums[i]);
    }
    store(scores + g * kDecodeKeys, sum_rows(sums));
  }
}

NIBBLE_SIMD bool is_direct(const Chunk& chunk) { return chunk.stride == chunk.dim; }

template <typename T>
void score_chunk(const Chunk& chunk, const T* keys) {
  for (int64_t i = 0; i < chunk.count; i += kLanes) {
    const int64_t n = min_of(kLanes, chunk.count - i);
    if constexpr (sizeof(T) == sizeof(float)) {
      if (is_direct(chunk) && n == kLanes) {
        score_keys(chunk, keys + i * chunk.dim, chunk.dim, chunk.scores + i);
        continue;
      }
    }
    unpack_rows(keys + i * chunk.dim, n, chunk.dim, chunk.rows, chunk.stride);
    for (int64_t k = n * chunk.stride; k < kLanes * chunk.stride; ++k) chunk.rows[k] = 0;
    score_keys(chunk, chunk.rows, chunk.stride, chunk.scores + i);
  }
}

template <typename T>
void sum_values(const Chunk& chunk, const T* values, float* out) {
  if (is_direct(chunk))
    return multiply(chunk.scores, kDecodeKeys, chunk.group, values, chunk.dim, chunk.count, chunk.stride, out,
                    chunk.stride, false);
  unpack_rows(values, chunk.count, chunk.dim, chunk.rows, chunk.stride);
  multiply(chunk.scores, kDecodeKeys, chunk.group, chunk.rows, chunk.stride, chunk.count, chunk.stride, out,
           chunk.stride, false);
}

Chunk make_chunk(const AttentionArgs& args, const AttentionSequence& sequence, int64_t kv_head, int64_t index) {
  Chunk chunk;
  chunk.group = args.heads / args.kv_heads;
  chunk.dim = args.head_dim;
  chunk.stride = padded(args.head_dim);
  chunk.first = first_key(args, sequence.past) + index * kDecodeKeys;
  chunk.count = min_of(kDecodeKeys, end_key(args, sequence, sequence.past) - chunk.first);
  const int64_t floats = chunk.group * (chunk.stride + kDecodeKeys) + kDecodeKeys * chunk.stride;
  chunk.q = static_cast<float*>(scratch(Scratch::attention_tile, floats * int64_t{sizeof(float)}));
  chunk.scores = chunk.q + chunk.group * chunk.stride;
  chunk.rows = chunk.scores + chunk.group * kDecodeKeys;
  unpack_rows(sequence.q_f32() + kv_head * chunk.group * chunk.dim, chunk.group, chunk.dim, chunk.q, chunk.stride);
  for (int64_t g = 0; g < chunk.group; ++g) scale_row(chunk.q + g * chunk.stride, chunk.stride, args.scale);
  return chunk;
}

}  // namespace

void attend_decode(const AttentionArgs& args, const AttentionSequence& sequence, int64_t kv_head, int64_t index,
                   float* partial) {
  const Chunk chunk = make_chunk(args, sequence, kv_head, index);
  const int64_t offset = (kv_head * sequence.capacity + chunk.first) * chunk.dim;
  with_type(args.kv_dtype, sequence.k, [&](const auto* keys) { score_chunk(chunk, keys + offset); });
  float* statistics = partial + chunk.group * chunk.stride;
  const int64_t whole = padded(chunk.count);
  for (int64_t g = 0; g < chunk.group; ++g) {
    float* scores = chunk.scores + g * kDecodeKeys;
    adjust_scores(scores, whole, args, kv_head * chunk.group + g, sequence.past, chunk.first);
    for (int64_t i = chunk.count; i < whole; ++i) scores[i] = -__builtin_inff();
    statistics[2 * g] = largest_score(scores, whole);
    statistics[2 * g + 1] = exponentiate(scores, whole, statistics[2 * g]);
  }
  with_type(args.kv_dtype, sequence.v, [&](const auto* values) { sum_values(chunk, values + offset, partial); });
}

void merge_decode(const AttentionArgs& args, const AttentionSequence& sequence, int64_t kv_head,
                  const float* partials) {
  const int64_t group = args.heads / args.kv_heads, dim = args.head_dim, stride = padded(dim);
  const int64_t chunks = decode_chunks(args, sequence), size = partial_size(args);
  for (int64_t g = 0; g < group; ++g) {
    const float* statistics = partials + group * stride + 2 * g;
    float largest = statistics[0], total = 0;
    for (int64_t c = 1; c < chunks; ++c) largest = largest > statistics[c * size] ? largest : statistics[c * size];
    for (int64_t c = 0; c < chunks; ++c) total += statistics[c * size + 1] * exp_one(statistics[c * size] - largest);
    float* out = sequence.out_f32() + (kv_head * group + g) * dim;
    for (int64_t c = 0; c < chunks; ++c) {
      const float weight = exp_one(statistics[c * size] - largest) / total;
      const float* sums = partials + c * size + g * stride;
      for (int64_t d = 0; d < dim; ++d) out[d] = (c == 0 ? 0.0f : out[d]) + weight * sums[d];
    }
  }
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
