// Attention of any head size, type and mask: a warp for each query and head, one lane a key. Right rather than fast.
#include "kernels/cuda/device/attention.cuh"

namespace nibble::kernels::cuda {
namespace {

constexpr int kWarps = 4;

/// `shared` holds a query and a sum of values, head_dim floats each, for every warp.
template <typename T>
__global__ void general_kernel(const __grid_constant__ AttentionArgs args,
                               const __grid_constant__ Sequences sequences) {
  extern __shared__ float shared[];
  const AttentionSequence& sequence = sequences.at[blockIdx.y];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (index >= sequence.tokens * args.heads) return;
  const int64_t token = index / args.heads, head = index % args.heads, dim = args.head_dim;
  const int64_t kv_head = head / (args.heads / args.kv_heads);
  const int64_t position = past_of(sequence) + token;
  const KeyRange keys = keys_of(args, sequence, position);
  float* q = shared + warp * 2 * dim;
  float* sum = q + dim;
  for (int64_t d = lane; d < dim; d += 32) {
    q[d] = query_at(args, sequence, token * args.q_stride + head * dim + d);
    sum[d] = 0;
  }
  __syncwarp();
  const T* k = static_cast<const T*>(sequence.k) + kv_head * sequence.capacity * dim;
  const T* v = static_cast<const T*>(sequence.v) + kv_head * sequence.capacity * dim;
  float maximum = -INFINITY, total = 0;
  for (int64_t first = keys.begin; first < keys.end; first += 32) {
    const int64_t key = first + lane;
    float score = -INFINITY;
    if (key < keys.end) {
      float product = 0;
      for (int64_t d = 0; d < dim; ++d) product = fmaf(q[d], to_float(k[key * dim + d]), product);
      product *= scale_of<T>(sequence.k_scales, kv_head * sequence.capacity + key);
      score = finish_score(args, product, head, position, key);
    }
    const float highest = fmaxf(maximum, warp_max(score));
    const float shrink = maximum == highest ? 1.0f : expf(maximum - highest);
    const float probability = key < keys.end ? expf(score - highest) : 0.0f;
    total = fmaf(total, shrink, warp_sum(probability));
    const float weight =
        key < keys.end ? probability * scale_of<T>(sequence.v_scales, kv_head * sequence.capacity + key) : 0.0f;
    maximum = highest;
    const int count = static_cast<int>(keys.end - first < 32 ? keys.end - first : 32);
    for (int64_t d = lane; d < (dim + 31) / 32 * 32; d += 32) {  // all lanes take part in the shuffles
      float value = d < dim ? sum[d] * shrink : 0.0f;
      for (int j = 0; j < count; ++j) {
        const float p = __shfl_sync(kFullMask, weight, j);
        if (d < dim) value = fmaf(p, to_float(v[(first + j) * dim + d]), value);
      }
      if (d < dim) sum[d] = value;
    }
  }
  if (sequence.lse2 && lane == 0)
    sequence.lse2[head * args.lse_stride + token] = (maximum + logf(total)) * 1.4426950408889634f;
  for (int64_t d = lane; d < dim; d += 32)
    put_result(args, sequence, (token * args.heads + head) * dim + d, sum[d] / total);
}

}  // namespace

void attention_general(const Context& context, const AttentionArgs& args, const Sequences& sequences) {
  int64_t tokens = 0;
  for (int s = 0; s < sequences.count; ++s) tokens = sequences.at[s].tokens > tokens ? sequences.at[s].tokens : tokens;
  const dim3 grid(blocks_for(tokens * args.heads, kWarps), static_cast<unsigned>(sequences.count));
  const auto shared_bytes = static_cast<size_t>(kWarps * 2 * args.head_dim) * sizeof(float);
  with_cache_type(args.kv_dtype, [&](auto element) {
    general_kernel<decltype(element)><<<grid, kWarps * 32, shared_bytes, stream_of(context.stream)>>>(args, sequences);
  });
}

}  // namespace nibble::kernels::cuda
