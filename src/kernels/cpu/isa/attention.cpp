// attention: cuts a call into items that do not depend on the number of threads, and merges what decode left in parts.
#include "kernels/cpu/isa/attention_tile.h"
#include "kernels/cpu/scratch.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {
namespace {

NIBBLE_SIMD bool is_decode(const AttentionSequence& sequence) { return sequence.tokens == 1; }

/// Items of one kv head of a sequence.
NIBBLE_SIMD int64_t parts_of(const AttentionArgs& args, const AttentionSequence& sequence) {
  if (is_decode(sequence)) return decode_chunks(args, sequence);
  return ceil_of(sequence.tokens, prefill_block_tokens(args));
}

void attend_item(const AttentionArgs& args, int64_t item, float* partials) {
  for (int64_t s = 0; s < args.sequence_count; ++s) {
    const AttentionSequence& sequence = args.sequences[s];
    const int64_t parts = parts_of(args, sequence);
    const int64_t items = parts * args.kv_heads;
    if (item < items) {
      const int64_t kv_head = item / parts, part = item % parts;
      if (is_decode(sequence))
        attend_decode(args, sequence, kv_head, part, partials + item * partial_size(args));
      else
        attend_prefill(args, sequence, kv_head, parts - 1 - part);  // the longest first
      return;
    }
    item -= items;
    if (is_decode(sequence)) partials += items * partial_size(args);
  }
}

void merge_sequences(const AttentionArgs& args, const float* partials) {
  for (int64_t s = 0; s < args.sequence_count; ++s) {
    const AttentionSequence& sequence = args.sequences[s];
    if (!is_decode(sequence)) continue;
    const int64_t size = parts_of(args, sequence) * partial_size(args);
    for (int64_t kv_head = 0; kv_head < args.kv_heads; ++kv_head, partials += size)
      merge_decode(args, sequence, kv_head, partials);
  }
}

}  // namespace

void attention(const Context& context, const AttentionArgs& args) {
  int64_t items = 0, decode_items = 0;
  for (int64_t s = 0; s < args.sequence_count; ++s) {
    const int64_t count = parts_of(args, args.sequences[s]) * args.kv_heads;
    items += count;
    if (is_decode(args.sequences[s])) decode_items += count;
  }
  float* partials = nullptr;
  if (decode_items > 0)
    partials = static_cast<float*>(
        scratch(Scratch::attention_partials, decode_items * partial_size(args) * int64_t{sizeof(float)}));
  for_ranges(context, items, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) attend_item(args, item, partials);
  });
  merge_sequences(args, partials);
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
