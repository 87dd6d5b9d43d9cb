// attention: sorts the sequences of a call by the kernel that suits them; cache_append.
#include "kernels/cuda/device/attention.cuh"
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
  if (sequence.tokens == 1) return attention_decode;
  const bool has_tensor_cores = context.capability >= 80 && args.kv_dtype == DType::bf16;
  return has_tensor_cores && args.is_causal && !args.relative_bias ? attention_prefill : attention_general;
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
         is_aligned(args.x, 16) && is_aligned(args.cache, 16) && args.tokens < 0x7fffffff;
}

}  // namespace

void attention(const Context& context, const AttentionArgs& args) {
  for (const Kernel kernel : {attention_decode, attention_prefill, attention_general}) {
    Sequences sequences;
    for (int64_t s = 0; s < args.sequence_count; ++s) {
      if (args.sequences[s].tokens == 0 || choose(context, args, args.sequences[s]) != kernel) continue;
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
