// rotate_append: one launch for every head of every token.
#include "kernels/cuda/device/attention.cuh"
#include "kernels/cuda/device/dependent.cuh"
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

template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T at[4];
};

template <typename T>
__device__ __forceinline__ void store_four(T* to, float4 x) {
  *reinterpret_cast<Four<T>*>(to) = {from_float<T>(x.x), from_float<T>(x.y), from_float<T>(x.z), from_float<T>(x.w)};
}

__device__ __forceinline__ float4 load_four(const float* from) { return *reinterpret_cast<const float4*>(from); }

/// (first, second) halves of four pairs, rotated.
__device__ __forceinline__ void rotate_four(float4& a, float4& b, float4 cos, float4 sin) {
  const float4 first = make_float4(fmaf(a.x, cos.x, -(b.x * sin.x)), fmaf(a.y, cos.y, -(b.y * sin.y)),
                                   fmaf(a.z, cos.z, -(b.z * sin.z)), fmaf(a.w, cos.w, -(b.w * sin.w)));
  b = make_float4(fmaf(b.x, cos.x, a.x * sin.x), fmaf(b.y, cos.y, a.y * sin.y), fmaf(b.z, cos.z, a.z * sin.z),
                  fmaf(b.w, cos.w, a.w * sin.w));
  a = first;
}

constexpr int kVectorThreads = 256;

/// For heads that are rotated whole, half by half: a thread takes four elements of each half of one head of q, k or v.
/// Grid: (parts of a token, tokens of the longest sequence, sequences).
template <typename T>
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
  const float* x = is_query ? args.q + row * args.q_stride
                   : is_key ? args.k + row * args.k_stride
                            : args.v + row * args.v_stride;
  x += static_cast<int64_t>(head) * dim + i;
  float4 a = load_four(x), b = load_four(x + half);
  if (is_query || is_key) rotate_four(a, b, load_four(args.cos + row * half + i), load_four(args.sin + row * half + i));
  if (is_query) {
    float* q = args.q + row * args.q_stride + static_cast<int64_t>(head) * dim + i;
    *reinterpret_cast<float4*>(q) = a;
    *reinterpret_cast<float4*>(q + half) = b;
    return;
  }
  T* cache = static_cast<T*>(const_cast<void*>(is_key ? sequence.k : sequence.v));
  T* to = cache + (head * sequence.capacity + past_of(sequence) + token) * dim + i;
  store_four(to, a);
  store_four(to + half, b);
}

bool has_vectors(const RotateAppendArgs& args, const Sequences& sequences) {
  const auto is_aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  for (int s = 0; s < sequences.count; ++s)
    if (!is_aligned(sequences.at[s].k) || !is_aligned(sequences.at[s].v)) return false;
  return args.rotary_dim == args.head_dim && !args.interleaved && args.head_dim % 8 == 0 && args.q_stride % 4 == 0 &&
         args.k_stride % 4 == 0 && args.v_stride % 4 == 0 && is_aligned(args.q) && is_aligned(args.k) &&
         is_aligned(args.v) && is_aligned(args.cos) && is_aligned(args.sin);
}

void launch(const Context& context, const RotateAppendArgs& args, const Sequences& sequences, int64_t first_row) {
  int64_t tokens = 0;
  for (int s = 0; s < sequences.count; ++s) tokens = sequences.at[s].tokens > tokens ? sequences.at[s].tokens : tokens;
  if (tokens == 0) return;
  const auto heads = args.heads + 2 * args.kv_heads;
  const auto rows = static_cast<unsigned>(tokens), count = static_cast<unsigned>(sequences.count);
  with_float_type(args.kv_dtype, [&](auto element) {
    using T = decltype(element);
    if (has_vectors(args, sequences))
      launch_dependent(context, rotate_append_vectors<T>,
                       dim3(blocks_for(heads * (args.head_dim / 8), kVectorThreads), rows, count), kVectorThreads, 0,
                       args, sequences, first_row);
    else
      launch_dependent(context, rotate_append_kernel<T>, dim3(static_cast<unsigned>(heads), rows, count), kThreads,
                       static_cast<size_t>(args.rotary_dim) * sizeof(float), args, sequences, first_row);
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
