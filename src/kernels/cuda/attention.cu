// attention: sorts the sequences of a call by the kernel that suits them; cache_append.
#include "kernels/cuda/device/attention.cuh"
#include "kernels/cuda/device/vector.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

using Kernel = void (*)(const Context&, const AttentionArgs&, const Sequences&);

/// Rows of the cache can be read 16 bytes at a time.
bool has_wide_rows(const AttentionArgs& args, const AttentionSequence& sequence) {
  return args.head_dim % 8 == 0 && args.head_dim <= 256 && is_packed(sequence.k) && is_packed(sequence.v);
}

Kernel choose(const Context& context, const AttentionArgs& args, const AttentionSequence& sequence) {
  if (!has_wide_rows(args, sequence)) return attention_general;
  if (sequence.tokens == 1 && !sequence.lse2) return attention_decode;
  if (args.kv_dtype == DType::i8) return attention_general;
  const bool has_tensor_cores = context.capability >= 80 && args.kv_dtype == DType::bf16;
  if (!has_tensor_cores || !args.is_causal || args.relative_bias) return attention_general;
  return suits_wide(context, args, sequence) ? attention_wide : attention_prefill;
}

/// Codes of `keys` rows of each head, as bf16 (heads, keys, dim).
__global__ void decode_cache_kernel(const int8_t* codes, const float* scales, int64_t capacity, int64_t keys,
                                    int64_t dim, __nv_bfloat16* out) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
  if (i >= keys * dim) return;
  const int64_t row = blockIdx.y * capacity + i / dim;
  float values[8];
  load_pack(codes + row * dim + i % dim, values);
#pragma unroll
  for (float& value : values) value *= scales[row];
  store_pack(out + blockIdx.y * keys * dim + i, values);
}

/// Many queries over a cache of codes: over a copy of it in bf16, one sequence after the other.
void attend_codes(const Context& context, const AttentionArgs& args, const AttentionSequence& sequence) {
  const int64_t keys = sequence.past + sequence.tokens, count = args.kv_heads * keys * args.head_dim;
  auto* copy = static_cast<__nv_bfloat16*>(context.scratch->reserve(4 * count));
  const dim3 grid(blocks_for(keys * args.head_dim / 8, 256), static_cast<unsigned>(args.kv_heads));
  const auto decode = [&](const void* codes, const float* scales, __nv_bfloat16* to) {
    decode_cache_kernel<<<grid, 256, 0, stream_of(context.stream)>>>(static_cast<const int8_t*>(codes), scales,
                                                                     sequence.capacity, keys, args.head_dim, to);
  };
  decode(sequence.k, sequence.k_scales, copy);
  decode(sequence.v, sequence.v_scales, copy + count);
  AttentionSequence plain = sequence;
  plain.k = copy;
  plain.v = copy + count;
  plain.capacity = keys;
  AttentionArgs plain_args = args;
  plain_args.sequences = &plain;
  plain_args.sequence_count = 1;
  plain_args.kv_dtype = DType::bf16;
  attention(context, plain_args);
}

template <typename T, typename X>
__global__ void cache_append_kernel(CacheAppendArgs args) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= args.tokens * args.kv_heads * args.head_dim) return;
  const int64_t past = args.past_at ? *args.past_at : args.past;
  const int64_t d = index % args.head_dim, head = index / args.head_dim % args.kv_heads,
                token = index / args.head_dim / args.kv_heads;
  static_cast<T*>(args.cache)[(head * args.capacity + past + token) * args.head_dim + d] =
      from_float<T>(to_float(static_cast<const X*>(args.x)[token * args.stride + head * args.head_dim + d]));
}

/// Eight elements a thread that keep their type; a block row a token.
__global__ void cache_append_vectors(CacheAppendArgs args, int element_bytes) {
  const int vectors = static_cast<int>(args.head_dim) * element_bytes / 16;  // of a head
  const int at = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  if (at >= static_cast<int>(args.kv_heads) * vectors) return;
  const int64_t token = blockIdx.x, past = args.past_at ? *args.past_at : args.past;
  const auto* from =
      reinterpret_cast<const uint4*>(static_cast<const char*>(args.x) + token * args.stride * element_bytes);
  const int64_t row = (at / vectors) * args.capacity + past + token;
  static_cast<uint4*>(args.cache)[row * vectors + at % vectors] = from[at];
}

bool has_vectors(const CacheAppendArgs& args) {
  const int64_t bytes = size_of(args.dtype);
  return args.dtype == args.x_dtype && args.head_dim * bytes % 16 == 0 && args.stride * bytes % 16 == 0 &&
         is_packed(args.x) && is_packed(args.cache) && args.tokens < 0x7fffffff;
}

}  // namespace

void attention(const Context& context, const AttentionArgs& args) {
  const auto has_copy = [&](const AttentionSequence& sequence) {
    return args.kv_dtype == DType::i8 && sequence.tokens > 1 && args.is_causal && !args.relative_bias &&
           !sequence.past_at && has_wide_rows(args, sequence);
  };
  for (int64_t s = 0; s < args.sequence_count; ++s)
    if (has_copy(args.sequences[s])) attend_codes(context, args, args.sequences[s]);
  for (const Kernel kernel : {attention_decode, attention_wide, attention_prefill, attention_general}) {
    Sequences sequences;
    for (int64_t s = 0; s < args.sequence_count; ++s) {
      if (args.sequences[s].tokens == 0 || has_copy(args.sequences[s]) ||
          choose(context, args, args.sequences[s]) != kernel)
        continue;
      sequences.at[sequences.count++] = args.sequences[s];
      if (sequences.count < kMaxSequences) continue;
      kernel(context, args, sequences);
      sequences.count = 0;
    }
    if (sequences.count > 0) kernel(context, args, sequences);
  }
}

void cache_append(const Context& context, const CacheAppendArgs& args) {
  const int64_t count = args.tokens * args.kv_heads * args.head_dim;
  if (count == 0) return;
  if (has_vectors(args)) {
    const int64_t bytes = size_of(args.dtype);
    const dim3 grid(static_cast<unsigned>(args.tokens), blocks_for(args.kv_heads * args.head_dim * bytes / 16, 128));
    cache_append_vectors<<<grid, 128, 0, stream_of(context.stream)>>>(args, static_cast<int>(bytes));
    return;
  }
  with_float_type(args.dtype, [&](auto element) {
    with_activation_type(args.x_dtype, [&](auto x) {
      cache_append_kernel<decltype(element), decltype(x)>
          <<<blocks_for(count, 256), 256, 0, stream_of(context.stream)>>>(args);
    });
  });
}

}  // namespace nibble::kernels::cuda
