// rotate_append: one launch for every head of every token.
#include "kernels/cuda/device/attention.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 64;

/// Element i of a head after the rotation by its token's angles.
__device__ __forceinline__ float rotated(const float* x, int64_t i, const float* cos, const float* sin,
                                         int64_t rotary_dim, bool interleaved) {
  if (i >= rotary_dim) return x[i];
  const int64_t half = rotary_dim / 2;
  const int64_t pair = interleaved ? i / 2 : i % half;
  const bool is_first = interleaved ? i % 2 == 0 : i < half;
  const float a = interleaved ? x[2 * pair] : x[pair], b = interleaved ? x[2 * pair + 1] : x[pair + half];
  return is_first ? fmaf(a, cos[pair], -(b * sin[pair])) : fmaf(b, cos[pair], a * sin[pair]);
}

/// Grid: (heads + 2 * kv_heads, tokens of the longest sequence, sequences); a head fits a block's shared memory.
template <typename T>
__global__ void rotate_append_kernel(const __grid_constant__ RotateAppendArgs args,
                                     const __grid_constant__ Sequences sequences, int64_t first_row) {
  extern __shared__ float head[];
  const AttentionSequence& sequence = sequences.at[blockIdx.z];
  const int64_t token = blockIdx.y, dim = args.head_dim;
  if (token >= sequence.tokens) return;
  int64_t row = first_row + token;
  for (int s = 0; s < blockIdx.z; ++s) row += sequences.at[s].tokens;
  const float* cos = args.cos + row * (args.rotary_dim / 2);
  const float* sin = args.sin + row * (args.rotary_dim / 2);
  int64_t index = blockIdx.x;
  if (index < args.heads) {
    float* q = args.q + row * args.q_stride + index * dim;
    for (int64_t i = threadIdx.x; i < args.rotary_dim; i += kThreads) head[i] = q[i];
    __syncthreads();
    for (int64_t i = threadIdx.x; i < args.rotary_dim; i += kThreads)
      q[i] = rotated(head, i, cos, sin, args.rotary_dim, args.interleaved);
    return;
  }
  index -= args.heads;
  const bool is_key = index < args.kv_heads;
  if (!is_key) index -= args.kv_heads;
  const float* x = is_key ? args.k + row * args.k_stride + index * dim : args.v + row * args.v_stride + index * dim;
  T* cache = static_cast<T*>(const_cast<void*>(is_key ? sequence.k : sequence.v));
  T* to = cache + (index * sequence.capacity + past_of(sequence) + token) * dim;
  const int64_t rotary_dim = is_key ? args.rotary_dim : 0;
  for (int64_t i = threadIdx.x; i < dim; i += kThreads)
    to[i] = from_float<T>(rotated(x, i, cos, sin, rotary_dim, args.interleaved));
}

void launch(const Context& context, const RotateAppendArgs& args, const Sequences& sequences, int64_t first_row) {
  int64_t tokens = 0;
  for (int s = 0; s < sequences.count; ++s) tokens = sequences.at[s].tokens > tokens ? sequences.at[s].tokens : tokens;
  if (tokens == 0) return;
  const dim3 grid(static_cast<unsigned>(args.heads + 2 * args.kv_heads), static_cast<unsigned>(tokens),
                  static_cast<unsigned>(sequences.count));
  with_float_type(args.kv_dtype, [&](auto element) {
    rotate_append_kernel<decltype(element)>
        <<<grid, kThreads, static_cast<size_t>(args.rotary_dim) * sizeof(float), stream_of(context.stream)>>>(
            args, sequences, first_row);
  });
}

}  // namespace

void rotate_append(const Context& context, const RotateAppendArgs& args) {
  constexpr int64_t kMaxTokens = 65535;  // of a grid
  int64_t row = 0;
  Sequences sequences;
  int64_t first_row = 0;
  const auto flush = [&] {
    if (sequences.count > 0) launch(context, args, sequences, first_row);
    sequences.count = 0;
    first_row = row;
  };
  for (int64_t s = 0; s < args.sequence_count; ++s) {
    const AttentionSequence& whole = args.sequences[s];
    for (int64_t token = 0; token < whole.tokens; token += kMaxTokens) {
      if (sequences.count == kMaxSequences) flush();
      AttentionSequence& part = sequences.at[sequences.count++];
      part = whole;
      part.past += token;
      part.tokens = whole.tokens - token < kMaxTokens ? whole.tokens - token : kMaxTokens;
      row += part.tokens;
      if (part.tokens < whole.tokens) flush();  // past_at does not know of parts: only one token repeats
    }
  }
  flush();
}

}  // namespace nibble::kernels::cuda
