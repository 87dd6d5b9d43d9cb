// rotate_append: one launch for every head of every token.
#include "kernels/cuda/device/attention.cuh"
#include "kernels/cuda/device/dependent.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

constexpr int kThreads = 64;

/// Element i of a head after the rotation by its token's angles.
template <typename X>
__device__ __forceinline__ float rotated(const X* x, int64_t i, const float* cos, const float* sin, int64_t rotary_dim,
                                         bool interleaved) {
  if (i >= rotary_dim) return to_float(x[i]);
  const int64_t half = rotary_dim / 2;
  const int64_t pair = interleaved ? i / 2 : i % half;
  const bool is_first = interleaved ? i % 2 == 0 : i < half;
  const float a = to_float(x[interleaved ? 2 * pair : pair]), b = to_float(x[interleaved ? 2 * pair + 1 : pair + half]);
  return is_first ? fmaf(a, cos[pair], -(b * sin[pair])) : fmaf(b, cos[pair], a * sin[pair]);
}

/// Grid: (heads + 2 * kv_heads, tokens of the longest sequence, sequences); a head fits a block's shared memory.
template <typename T, typename X>
__global__ void rotate_append_kernel(const __grid_constant__ RotateAppendArgs args,
                                     const __grid_constant__ Sequences sequences, int64_t first_row) {
  extern __shared__ float head[];
  wait_for_previous();
  const AttentionSequence& sequence = sequences.at[blockIdx.z];
  const int64_t token = blockIdx.y, dim = args.head_dim;
  if (token >= sequence.tokens) return;
  int64_t row = first_row + token;
  for (int s = 0; s < blockIdx.z; ++s) row += sequences.at[s].tokens;
  const float* cos = args.cos + row * (args.rotary_dim / 2);
  const float* sin = args.sin + row * (args.rotary_dim / 2);
  int64_t index = blockIdx.x;
  if (index < args.heads) {
    X* q = static_cast<X*>(args.q) + row * args.q_stride + index * dim;
    for (int64_t i = threadIdx.x; i < args.rotary_dim; i += kThreads) head[i] = to_float(q[i]);
    __syncthreads();
    for (int64_t i = threadIdx.x; i < args.rotary_dim; i += kThreads)
      q[i] = from_float<X>(rotated(head, i, cos, sin, args.rotary_dim, args.interleaved));
    return;
  }
  index -= args.heads;
  const bool is_key = index < args.kv_heads;
  if (!is_key) index -= args.kv_heads;
  const X* x = (is_key ? static_cast<const X*>(args.k) + row * args.k_stride
                       : static_cast<const X*>(args.v) + row * args.v_stride) +
               index * dim;
  T* cache = static_cast<T*>(const_cast<void*>(is_key ? sequence.k : sequence.v));
  T* to = cache + (index * sequence.capacity + past_of(sequence) + token) * dim;
  const int64_t rotary_dim = is_key ? args.rotary_dim : 0;
  for (int64_t i = threadIdx.x; i < dim; i += kThreads)
    to[i] = from_float<T>(rotated(x, i, cos, sin, rotary_dim, args.interleaved));
}

/// (first, second) halves of four pairs, rotated.
__device__ __forceinline__ void rotate_four(float (&a)[4], float (&b)[4], const float* cosines, const float* sines) {
  float cos[4], sin[4];
  load_pack(cosines, cos);
  load_pack(sines, sin);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float first = fmaf(a[i], cos[i], -(b[i] * sin[i]));
    b[i] = fmaf(b[i], cos[i], a[i] * sin[i]);
    a[i] = first;
  }
}

/// The same into a cache of codes: each key's and value's own scale. Shared memory holds a head.
template <typename X>
__global__ void rotate_append_codes(const __grid_constant__ RotateAppendArgs args,
                                    const __grid_constant__ Sequences sequences, int64_t first_row) {
  extern __shared__ float head[];
  __shared__ float maxima[kThreads / 32];
  wait_for_previous();
  const AttentionSequence& sequence = sequences.at[blockIdx.z];
  const int64_t token = blockIdx.y, dim = args.head_dim;
  if (token >= sequence.tokens) return;
  int64_t row = first_row + token;
  for (int s = 0; s < blockIdx.z; ++s) row += sequences.at[s].tokens;
  const float* cos = args.cos + row * (args.rotary_dim / 2);
  const float* sin = args.sin + row * (args.rotary_dim / 2);
  const bool is_query = blockIdx.x < args.heads, is_key = !is_query && blockIdx.x < args.heads + args.kv_heads;
  const int64_t index = blockIdx.x - (is_query ? 0 : is_key ? args.heads : args.heads + args.kv_heads);
  const X* x = (is_query ? static_cast<const X*>(args.q) + row * args.q_stride
                : is_key ? static_cast<const X*>(args.k) + row * args.k_stride
                         : static_cast<const X*>(args.v) + row * args.v_stride) +
               index * dim;
  float absmax = 0;
  for (int64_t i = threadIdx.x; i < dim; i += kThreads) {
    head[i] = rotated(x, i, cos, sin, is_query || is_key ? args.rotary_dim : 0, args.interleaved);
    absmax = fmaxf(absmax, fabsf(head[i]));
  }
  absmax = warp_max(absmax);
  if (threadIdx.x % 32 == 0) maxima[threadIdx.x / 32] = absmax;
  __syncthreads();  // q has been read, too
  if (is_query) {
    X* q = static_cast<X*>(args.q) + row * args.q_stride + index * dim;
    for (int64_t i = threadIdx.x; i < dim; i += kThreads) q[i] = from_float<X>(head[i]);
    return;
  }
  absmax = fmaxf(maxima[0], maxima[1]);
  if (absmax < 1.17549435e-38f) absmax = 0;
  const float unit = absmax > 0 ? 127.0f / absmax : 0.0f;
  const int64_t key = index * sequence.capacity + past_of(sequence) + token;
  auto* codes = static_cast<int8_t*>(const_cast<void*>(is_key ? sequence.k : sequence.v)) + key * dim;
  for (int64_t i = threadIdx.x; i < dim; i += kThreads) {
    const float code = rintf(head[i] * unit);
    codes[i] = static_cast<int8_t>(fminf(fmaxf(isnan(code) ? 0.0f : code, -127.0f), 127.0f));
  }
  if (threadIdx.x == 0) (is_key ? sequence.k_scales : sequence.v_scales)[key] = absmax * (1.0f / 127.0f);
}

constexpr int kVectorThreads = 256;

/// For heads that are rotated whole, half by half: a thread takes four elements of each half of one head of q, k or v.
/// Grid: (parts of a token, tokens of the longest sequence, sequences).
template <typename T, typename X>
__global__ void __launch_bounds__(kVectorThreads)
    rotate_append_vectors(const __grid_constant__ RotateAppendArgs args, const __grid_constant__ Sequences sequences,
                          int64_t first_row) {
  wait_for_previous();
  const AttentionSequence& sequence = sequences.at[blockIdx.z];
  const int64_t token = blockIdx.y;
  const int dim = static_cast<int>(args.head_dim), half = dim / 2, slices = half / 4;
  const int index = static_cast<int>(blockIdx.x * kVectorThreads + threadIdx.x);
  const int heads = static_cast<int>(args.heads), kv_heads = static_cast<int>(args.kv_heads);
  int head = index / slices;
  const int i = index % slices * 4;
  if (token >= sequence.tokens || head >= heads + 2 * kv_heads) return;
  int64_t row = first_row + token;
  for (int s = 0; s < blockIdx.z; ++s) row += sequences.at[s].tokens;
  const bool is_query = head < heads, is_key = !is_query && head < heads + kv_heads;
  if (!is_query) head -= is_key ? heads : heads + kv_heads;
  const X* x = is_query ? static_cast<const X*>(args.q) + row * args.q_stride
               : is_key ? static_cast<const X*>(args.k) + row * args.k_stride
                        : static_cast<const X*>(args.v) + row * args.v_stride;
  x += static_cast<int64_t>(head) * dim + i;
  float a[4], b[4];
  load_pack(x, a);
  load_pack(x + half, b);
  if (is_query || is_key) rotate_four(a, b, args.cos + row * half + i, args.sin + row * half + i);
  if (is_query) {
    X* q = static_cast<X*>(args.q) + row * args.q_stride + static_cast<int64_t>(head) * dim + i;
    store_pack(q, a);
    store_pack(q + half, b);
    return;
  }
  T* cache = static_cast<T*>(const_cast<void*>(is_key ? sequence.k : sequence.v));
  T* to = cache + (head * sequence.capacity + past_of(sequence) + token) * dim + i;
  store_pack(to, a);
  store_pack(to + half, b);
}

bool has_vectors(const RotateAppendArgs& args, const Sequences& sequences) {
  for (int s = 0; s < sequences.count; ++s)
    if (!is_packed(sequences.at[s].k) || !is_packed(sequences.at[s].v)) return false;
  return args.rotary_dim == args.head_dim && !args.interleaved && args.head_dim % 8 == 0 && args.q_stride % 4 == 0 &&
         args.k_stride % 4 == 0 && args.v_stride % 4 == 0 && is_packed(args.q) && is_packed(args.k) &&
         is_packed(args.v) && is_packed(args.cos) && is_packed(args.sin);
}

void launch(const Context& context, const RotateAppendArgs& args, const Sequences& sequences, int64_t first_row) {
  int64_t tokens = 0;
  for (int s = 0; s < sequences.count; ++s) tokens = sequences.at[s].tokens > tokens ? sequences.at[s].tokens : tokens;
  if (tokens == 0) return;
  const auto heads = args.heads + 2 * args.kv_heads;
  const auto rows = static_cast<unsigned>(tokens), count = static_cast<unsigned>(sequences.count);
  if (args.kv_dtype == DType::i8) {
    with_activation_type(args.x_dtype, [&](auto x) {
      launch_dependent(context, rotate_append_codes<decltype(x)>, dim3(static_cast<unsigned>(heads), rows, count),
                       kThreads, static_cast<size_t>(args.head_dim) * sizeof(float), args, sequences, first_row);
    });
    return;
  }
  with_float_type(args.kv_dtype, [&](auto element) {
    with_activation_type(args.x_dtype, [&](auto x) {
      using T = decltype(element);
      using X = decltype(x);
      if (has_vectors(args, sequences))
        launch_dependent(context, rotate_append_vectors<T, X>,
                         dim3(blocks_for(heads * (args.head_dim / 8), kVectorThreads), rows, count), kVectorThreads, 0,
                         args, sequences, first_row);
      else
        launch_dependent(context, rotate_append_kernel<T, X>, dim3(static_cast<unsigned>(heads), rows, count), kThreads,
                         static_cast<size_t>(args.rotary_dim) * sizeof(float), args, sequences, first_row);
    });
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
