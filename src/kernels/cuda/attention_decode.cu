// Attention of one query a sequence: blocks share a sequence's keys, and the last of them to finish joins the parts.
#include "kernels/cuda/device/async.cuh"
#include "kernels/cuda/device/attention_decode.cuh"
#include "kernels/cuda/device/dependent.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

/// Grid: (parts, columns, sequences).
template <typename T, int kDim, int kHeads, bool kNew>
__global__ void __launch_bounds__(kDecodeThreads)
    decode_kernel(const __grid_constant__ AttentionArgs args, const __grid_constant__ Sequences sequences,
                  const __grid_constant__ NewTokens tokens, float* partials, unsigned* counters) {
  allow_next_launch_where_possible();
  __shared__ DecodeShared<T, kDim, kHeads> shared;
  const DecodeGroup group{static_cast<int>(threadIdx.x), 1};
  const DecodeItem item{static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
  attend_query<T, kDim, kHeads, kNew>(group, item, args, sequences.at[blockIdx.z], tokens, partials, counters, shared,
                                      [] { wait_for_previous(); });
}

template <typename T, int kDim, int kHeads, bool kNew>
void launch(const Context& context, const AttentionArgs& args, const Sequences& sequences, const NewTokens& tokens) {
  int64_t keys = 1;
  for (int s = 0; s < sequences.count; ++s) {
    const AttentionSequence& sequence = sequences.at[s];
    const int64_t seen = args.is_causal ? sequence.past + 1 : sequence.keys;
    const int64_t in_window = args.window > 0 && seen > args.window ? args.window : seen;
    keys = in_window > keys ? in_window : keys;
  }
  // More keys can make fewer parts, when each gets longer: a sequence shorter than the longest may have up to
  // kMaxDecodeParts.
  const int64_t tiles = (keys + decode::kTile - 1) / decode::kTile;
  const auto parts = static_cast<unsigned>(tiles < kMaxDecodeParts ? tiles : kMaxDecodeParts);
  const dim3 grid(parts, static_cast<unsigned>(decode_columns<kHeads>(args)), static_cast<unsigned>(sequences.count));
  void* scratch =
      parts > 1 ? context.scratch->reserve(decode_partials(args, sequences.count) * static_cast<int64_t>(sizeof(float)))
                : nullptr;
  const auto kernel = decode_kernel<T, kDim, kHeads, kNew>;
  // As the products around it: a multiprocessor changes its share of shared memory only when it is empty.
  cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  launch_dependent(context, kernel, grid, kDecodeThreads, 0, args, sequences, tokens, static_cast<float*>(scratch),
                   context.counters);
}

template <typename T, int kDim, bool kNew = false>
void choose_heads(const Context& context, const AttentionArgs& args, const Sequences& sequences,
                  const NewTokens& tokens = {}) {
  const int64_t group = args.heads / args.kv_heads;
  if (group == 1) return launch<T, kDim, 1, kNew>(context, args, sequences, tokens);
  if (group <= 4) return launch<T, kDim, 4, kNew>(context, args, sequences, tokens);
  launch<T, kDim, 8, kNew>(context, args, sequences, tokens);
}

/// Calls that the fused kernel is built for.
bool suits_new_tokens(const RotateAppendArgs& rotation, const AttentionArgs& args) {
  const int64_t dim = args.head_dim;
  if (args.kv_dtype != DType::bf16 || !args.is_causal || dim % 16 != 0 || dim > 128 || rotation.interleaved ||
      (rotation.rotary_dim != 0 && rotation.rotary_dim != dim) || rotation.x_dtype != args.q_dtype ||
      args.q_stride % 8 != 0 || rotation.k_stride % 8 != 0 || rotation.v_stride % 8 != 0 || !is_packed(rotation.k) ||
      !is_packed(rotation.v) || !is_packed(rotation.cos) || !is_packed(rotation.sin))
    return false;
  for (int64_t s = 0; s < args.sequence_count; ++s) {
    const AttentionSequence& sequence = args.sequences[s];
    if (sequence.tokens != 1 || !is_packed(sequence.q) || !is_packed(sequence.k) || !is_packed(sequence.v))
      return false;
  }
  return true;
}

}  // namespace

bool rotate_attention(const Context& context, const RotateAppendArgs& rotation, const AttentionArgs& args) {
  if (!suits_new_tokens(rotation, args)) return false;
  for (int64_t first = 0; first < args.sequence_count; first += kMaxSequences) {
    Sequences sequences;
    while (sequences.count < kMaxSequences && first + sequences.count < args.sequence_count) {
      sequences.at[sequences.count] = args.sequences[first + sequences.count];
      ++sequences.count;
    }
    const int64_t angles = first * (rotation.rotary_dim / 2);
    const bool rotates = rotation.rotary_dim > 0;
    const NewTokens tokens{advanced(rotation.k, first * rotation.k_stride, rotation.x_dtype),
                           advanced(rotation.v, first * rotation.v_stride, rotation.x_dtype),
                           rotation.k_stride,
                           rotation.v_stride,
                           rotates ? rotation.cos + angles : nullptr,
                           rotates ? rotation.sin + angles : nullptr};
    using T = __nv_bfloat16;
    args.head_dim <= 64 ? choose_heads<T, 64, true>(context, args, sequences, tokens)
                        : choose_heads<T, 128, true>(context, args, sequences, tokens);
  }
  return true;
}

void attention_decode(const Context& context, const AttentionArgs& args, const Sequences& sequences) {
  with_cache_type(args.kv_dtype, [&](auto element) {
    using T = decltype(element);
    if (args.head_dim <= 64) return choose_heads<T, 64>(context, args, sequences);
    if (args.head_dim <= 128) return choose_heads<T, 128>(context, args, sequences);
    choose_heads<T, 256>(context, args, sequences);
  });
}

}  // namespace nibble::kernels::cuda
