// Attention of one query a sequence: blocks share a sequence's keys, and the last of them to finish joins the parts.
#include <type_traits>

#include "kernels/cuda/device/attention_decode.cuh"
#include "kernels/cuda/device/attention_decode_plain.cuh"
#include "kernels/cuda/device/dependent.cuh"
#include "kernels/cuda/entries.h"

namespace nibble::kernels::cuda {
namespace {

__device__ __forceinline__ DecodeGroup this_group() { return {static_cast<int>(threadIdx.x), 1}; }
__device__ __forceinline__ DecodeItem this_item() {
  return {static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
}

/// Grids: (parts, columns, sequences).
template <typename T, int kDim, int kHeads, bool kNew>
__global__ void __launch_bounds__(kDecodeThreads, kDim > 128 ? 2 : 5)
    decode_kernel(const __grid_constant__ AttentionArgs args, const __grid_constant__ Sequences sequences,
                  const __grid_constant__ NewTokens tokens, float* scratch, unsigned* counters) {
#if __CUDA_ARCH__ >= 800
  extern __shared__ __align__(256) unsigned char memory[];
  allow_next_launch_where_possible();
  attend_query<T, kDim, kHeads, kNew>(this_group(), this_item(), args, sequences.at[blockIdx.z], tokens, scratch,
                                      counters, *reinterpret_cast<DecodeShared<T, kDim, kHeads>*>(memory),
                                      [] { wait_for_previous(); });
#endif
}

/// Few blocks: a warp may have more under way.
template <typename T, int kDim>
inline constexpr int kClusterSlots = 2 * decode::slots_for<T, kDim>();

/// The parts of a column are a cluster, which saves the way through scratch memory; more registers, fewer blocks at
/// once: for grids that are resident whole.
template <typename T, int kDim, int kHeads>
__global__ void __launch_bounds__(kDecodeThreads, kDim > 128 ? 2 : 3)
    cluster_decode_kernel(const __grid_constant__ AttentionArgs args, const __grid_constant__ Sequences sequences,
                          const __grid_constant__ NewTokens tokens) {
#if __CUDA_ARCH__ >= 900
  using Meeting = JoinInCluster<kDim, kHeads>;
  using Shared = DecodeShared<T, kDim, kHeads, kClusterSlots<T, kDim>>;
  extern __shared__ __align__(256) unsigned char memory[];
  Meeting::arrive();
  allow_next_launch_where_possible();
  auto* own = reinterpret_cast<typename Meeting::Memory*>(memory + sizeof(Shared));
  uint64_t first;
  asm("mapa.u64 %0, %1, 0;\n" : "=l"(first) : "l"(reinterpret_cast<uint64_t>(own)));
  const Meeting meeting{own, blockIdx.x == 0 ? own : reinterpret_cast<typename Meeting::Memory*>(first)};
  attend_part<T, kDim, kHeads, true>(this_group(), this_item(), args, sequences.at[blockIdx.z], tokens, meeting,
                                     *reinterpret_cast<Shared*>(memory), [] {
                                       wait_for_previous();
                                       Meeting::wait();
                                     });
#endif
}

template <typename T, int kDim, int kHeads>
__global__ void __launch_bounds__(kDecodeThreads)
    plain_decode_kernel(const __grid_constant__ AttentionArgs args, const __grid_constant__ Sequences sequences,
                        float* scratch, unsigned* counters) {
  __shared__ PlainDecodeShared<kDim, kHeads> shared;
  allow_next_launch_where_possible();
  attend_query_plain<T, kDim, kHeads>(this_group(), this_item(), args, sequences.at[blockIdx.z], scratch, counters,
                                      shared, [] { wait_for_previous(); });
}

/// The most keys that a query sees.
int64_t most_keys(const AttentionArgs& args, const Sequences& sequences) {
  int64_t keys = 1;
  for (int s = 0; s < sequences.count; ++s) {
    const AttentionSequence& sequence = sequences.at[s];
    const int64_t seen = args.is_causal ? sequence.past + 1 : sequence.keys;
    const int64_t in_window = args.window > 0 && seen > args.window ? args.window : seen;
    keys = in_window > keys ? in_window : keys;
  }
  return keys;
}

float* scratch_for(const Context& context, const AttentionArgs& args, const Sequences& sequences, unsigned parts) {
  if (parts == 1) return nullptr;
  return static_cast<float*>(context.scratch->reserve(decode_partials(args, sequences.count) * 4));
}

/// As the products around it: a multiprocessor changes its share of shared memory only when it is empty.
template <typename Kernel>
void prepare(Kernel kernel, int shared) {
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
}

/// Clusters of blocks: where the code compiled for them runs.
bool has_clusters([[maybe_unused]] const Context& context) {
#ifdef NIBBLE_HAS_SM90
  return context.capability == 90;
#else
  return false;
#endif
}

template <typename T, int kDim, int kHeads>
void launch_clusters(const Context& context, dim3 grid, const AttentionArgs& args, const Sequences& sequences,
                     const NewTokens& tokens) {
  const auto kernel = cluster_decode_kernel<T, kDim, kHeads>;
  constexpr int kShared = sizeof(DecodeShared<T, kDim, kHeads, kClusterSlots<T, kDim>>) +
                          sizeof(typename JoinInCluster<kDim, kHeads>::Memory);
  prepare(kernel, kShared);
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = grid.x;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(kDecodeThreads);
  config.dynamicSmemBytes = kShared;
  config.stream = static_cast<cudaStream_t>(context.stream);
  config.attrs = attributes;
  config.numAttrs = 2;
  cudaLaunchKernelEx(&config, kernel, args, sequences, tokens);
}

template <typename T, int kDim, int kHeads, bool kNew>
void launch(const Context& context, const AttentionArgs& args, const Sequences& sequences, const NewTokens& tokens) {
  const auto parts = static_cast<unsigned>(decode::parts_of(static_cast<int>(most_keys(args, sequences))));
  const dim3 grid(parts, static_cast<unsigned>(decode_columns<kHeads>(args)), static_cast<unsigned>(sequences.count));
  if constexpr (kNew && kDim == 128) {
    const int64_t blocks = int64_t{grid.x} * grid.y * grid.z;
    if (has_clusters(context) && parts <= kMaxCluster && blocks <= 2 * context.multiprocessors)
      return launch_clusters<T, kDim, kHeads>(context, grid, args, sequences, tokens);
  }
  const auto kernel = decode_kernel<T, kDim, kHeads, kNew>;
  constexpr int kShared = sizeof(DecodeShared<T, kDim, kHeads>);
  prepare(kernel, kShared);
  launch_dependent(context, kernel, grid, kDecodeThreads, kShared, args, sequences, tokens,
                   scratch_for(context, args, sequences, parts), context.counters);
}

template <typename T, int kDim, int kHeads>
void launch_plain(const Context& context, const AttentionArgs& args, const Sequences& sequences) {
  // More keys can make fewer parts, when each gets longer: a sequence shorter than the longest may have up to
  // kMaxDecodeParts.
  const int64_t tiles = (most_keys(args, sequences) + plain_decode::kTile - 1) / plain_decode::kTile;
  const auto parts = static_cast<unsigned>(tiles < kMaxDecodeParts ? tiles : kMaxDecodeParts);
  const dim3 grid(parts, static_cast<unsigned>(decode_columns<kHeads>(args)), static_cast<unsigned>(sequences.count));
  const auto kernel = plain_decode_kernel<T, kDim, kHeads>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  launch_dependent(context, kernel, grid, kDecodeThreads, 0, args, sequences,
                   scratch_for(context, args, sequences, parts), context.counters);
}

/// Calls body(int width) with a constant of the head_dim's class.
template <typename Body>
void with_width(const AttentionArgs& args, const Body& body) {
  if (args.head_dim <= 64) return body(std::integral_constant<int, 64>{});
  if (args.head_dim <= 128) return body(std::integral_constant<int, 128>{});
  body(std::integral_constant<int, 256>{});
}

template <typename T, bool kNew>
void choose(const Context& context, const AttentionArgs& args, const Sequences& sequences,
            const NewTokens& tokens = {}) {
  with_width(args, [&](auto width) {
    constexpr int kDim = decltype(width)::value;
    args.heads == args.kv_heads ? launch<T, kDim, 1, kNew>(context, args, sequences, tokens)
                                : launch<T, kDim, 8, kNew>(context, args, sequences, tokens);
  });
}

template <typename T>
void choose_plain(const Context& context, const AttentionArgs& args, const Sequences& sequences) {
  with_width(args, [&](auto width) {
    constexpr int kDim = decltype(width)::value;
    const int64_t group = args.heads / args.kv_heads;
    if (group == 1) return launch_plain<T, kDim, 1>(context, args, sequences);
    if (group <= 4) return launch_plain<T, kDim, 4>(context, args, sequences);
    launch_plain<T, kDim, 8>(context, args, sequences);
  });
}

/// Rows of the cache are whole chunks of 16 bytes.
bool has_tensor_cores(const Context& context, const AttentionArgs& args) {
  const bool has_chunks = args.kv_dtype == DType::bf16 || (args.kv_dtype == DType::i8 && args.head_dim % 16 == 0);
  return context.capability >= 80 && has_chunks;
}

/// Calls that the fused kernel is built for.
bool suits_new_tokens(const Context& context, const RotateAppendArgs& rotation, const AttentionArgs& args) {
  const int64_t dim = args.head_dim;
  if (!has_tensor_cores(context, args) || !args.is_causal || dim % 16 != 0 || dim > 256 || rotation.interleaved ||
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
  if (!suits_new_tokens(context, rotation, args)) return false;
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
    args.kv_dtype == DType::i8 ? choose<int8_t, true>(context, args, sequences, tokens)
                               : choose<__nv_bfloat16, true>(context, args, sequences, tokens);
  }
  return true;
}

void attention_decode(const Context& context, const AttentionArgs& args, const Sequences& sequences) {
  if (has_tensor_cores(context, args))
    return args.kv_dtype == DType::i8 ? choose<int8_t, false>(context, args, sequences)
                                      : choose<__nv_bfloat16, false>(context, args, sequences);
  with_cache_type(args.kv_dtype, [&](auto element) { choose_plain<decltype(element)>(context, args, sequences); });
}

}  // namespace nibble::kernels::cuda
