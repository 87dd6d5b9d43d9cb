// Attention of many new tokens: blocks of queries against blocks of keys with a running softmax (FlashAttention's
// order), in fp32. A row of a tile is one head of one token.
#include "kernels/cpu/isa/attention_tile.h"
#include "kernels/cpu/scratch.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

constexpr int64_t kRows = 72;  // aimed at: a multiple of the register tile's six
constexpr int64_t kKeys = 64;

struct Tile {
  int64_t group, dim, stride;  // stride: dim padded to whole vectors
  int64_t tokens, rows;        // rows = tokens * group; row r is head r % group of token r / group
  int64_t position;            // of the first token
  float* q;                    // (rows, dim), scaled
  float* keys;                 // (dim, kKeys)
  float* values;               // (kKeys, stride)
  float* scores;               // (rows, kKeys)
  float* sums;                 // (rows, stride)
  float* largest;              // (rows)
  float* totals;               // (rows)
};

Tile make_tile(const AttentionArgs& args, const AttentionSequence& sequence, int64_t kv_head, int64_t block) {
  Tile tile;
  tile.group = args.heads / args.kv_heads;
  tile.dim = args.head_dim;
  tile.stride = padded(args.head_dim);
  const int64_t first = block * prefill_block_tokens(args);
  tile.tokens = min_of(prefill_block_tokens(args), sequence.tokens - first);
  tile.rows = tile.tokens * tile.group;
  tile.position = sequence.past + first;
  const int64_t floats = tile.rows * (tile.dim + kKeys + tile.stride + 2) + kKeys * (tile.dim + tile.stride);
  tile.keys = static_cast<float*>(scratch(Scratch::attention_tile, floats * int64_t{sizeof(float)}));
  tile.values = tile.keys + tile.dim * kKeys;
  tile.scores = tile.values + kKeys * tile.stride;
  tile.sums = tile.scores + tile.rows * kKeys;
  tile.q = tile.sums + tile.rows * tile.stride;
  tile.largest = tile.q + tile.rows * tile.dim;
  tile.totals = tile.largest + tile.rows;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const float* q = sequence.q_f32() + (first + r / tile.group) * args.q_stride +
                     (kv_head * tile.group + r % tile.group) * tile.dim;
    for (int64_t d = 0; d < tile.dim; ++d) tile.q[r * tile.dim + d] = q[d] * args.scale;
    for (int64_t d = 0; d < tile.stride; ++d) tile.sums[r * tile.stride + d] = 0;
    tile.largest[r] = -__builtin_inff();
    tile.totals[r] = 0;
  }
  return tile;
}

/// Keys (count, dim) as columns (dim, kKeys); columns past the last are zero.
template <typename T>
void transpose_keys(const T* x, int64_t count, int64_t dim, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) {
      F32 rows[kLanes];
      for (int64_t k = 0; k < kLanes; ++k) rows[k] = load(x + (i + k) * dim + d);
      transpose(rows);
      for (int64_t k = 0; k < kLanes; ++k) store(out + (d + k) * kKeys + i, rows[k]);
    }
    for (; d < dim; ++d)
      for (int64_t k = 0; k < kLanes; ++k) out[d * kKeys + i + k] = to_float(x[(i + k) * dim + d]);
  }
  for (; i < kKeys; ++i)
    for (int64_t d = 0; d < dim; ++d) out[d * kKeys + i] = i < count ? to_float(x[i * dim + d]) : 0;
}

/// One row's softmax step over the keys [low, high) of this block; the others get no weight.
NIBBLE_SIMD void update_row(const Tile& tile, int64_t r, int64_t low, int64_t high) {
  float* scores = tile.scores + r * kKeys;
  for (int64_t i = 0; i < low; ++i) scores[i] = -__builtin_inff();
  for (int64_t i = high; i < kKeys; ++i) scores[i] = -__builtin_inff();
  const float block_largest = largest_score(scores, kKeys);
  const float largest = block_largest > tile.largest[r] ? block_largest : tile.largest[r];
  const float shrink = exp_one(tile.largest[r] - largest);
  tile.largest[r] = largest;
  tile.totals[r] = tile.totals[r] * shrink + exponentiate(scores, kKeys, largest);
  if (shrink != 1.0f) scale_row(tile.sums + r * tile.stride, tile.stride, shrink);
}

template <typename T>
void attend_block(const AttentionArgs& args, const AttentionSequence& sequence, const Tile& tile, int64_t kv_head,
                  const T* keys, const T* values, int64_t first, int64_t count) {
  // Rows that see any of these keys: causal from below, the window from above.
  const int64_t begin = args.is_causal ? max_of(0, first - tile.position) * tile.group : 0;
  int64_t end = tile.rows;
  if (args.window > 0) end = min_of(end, max_of(0, first + count - 1 + args.window - tile.position) * tile.group);
  if (begin >= end) return;
  transpose_keys(keys, count, tile.dim, tile.keys);
  unpack_rows(values, count, tile.dim, tile.values, tile.stride);
  multiply(tile.q + begin * tile.dim, tile.dim, end - begin, tile.keys, kKeys, tile.dim, kKeys,
           tile.scores + begin * kKeys, kKeys, false);
  for (int64_t r = begin; r < end; ++r) {
    const int64_t position = tile.position + r / tile.group;
    adjust_scores(tile.scores + r * kKeys, kKeys, args, kv_head * tile.group + r % tile.group, position, first);
    update_row(tile, r, max_of(0, first_key(args, position) - first),
               min_of(count, end_key(args, sequence, position) - first));
  }
  multiply(tile.scores + begin * kKeys, kKeys, end - begin, tile.values, tile.stride, count, tile.stride,
           tile.sums + begin * tile.stride, tile.stride, true);
}

}  // namespace

int64_t prefill_block_tokens(const AttentionArgs& args) { return max_of(1, kRows / (args.heads / args.kv_heads)); }

void attend_prefill(const AttentionArgs& args, const AttentionSequence& sequence, int64_t kv_head, int64_t block) {
  const Tile tile = make_tile(args, sequence, kv_head, block);
  const int64_t last = end_key(args, sequence, tile.position + tile.tokens - 1);
  const int64_t head = kv_head * sequence.capacity * tile.dim;
  with_type(args.kv_dtype, sequence.k, [&](const auto* k) {
    const auto* keys = k + head;
    const auto* values = static_cast<decltype(k)>(sequence.v) + head;
    for (int64_t first = first_key(args, tile.position) / kKeys * kKeys; first < last; first += kKeys)
      attend_block(args, sequence, tile, kv_head, keys + first * tile.dim, values + first * tile.dim, first,
                   min_of(kKeys, last - first));
  });
  const int64_t token = block * prefill_block_tokens(args);
  for (int64_t r = 0; r < tile.rows; ++r) {
    float* out =
        sequence.out_f32() + ((token + r / tile.group) * args.heads + kv_head * tile.group + r % tile.group) * tile.dim;
    const float scale = 1.0f / tile.totals[r];
    for (int64_t d = 0; d < tile.dim; ++d) out[d] = tile.sums[r * tile.stride + d] * scale;
  }
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
