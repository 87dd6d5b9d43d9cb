// Attention inside a decode program: the groups of all blocks share the items of what was a launch of its own.
#pragma once

#include "kernels/cuda/device/attention_decode.cuh"
#include "kernels/cuda/device/few_rows.cuh"
#include "kernels/cuda/device/grid_barrier.cuh"

namespace nibble::kernels::cuda {

inline constexpr int kProgramSequences = 8;  // that a program takes at most
inline constexpr int kProgramGroups = 4;     // of a block's threads, at most

/// A launch of decode_kernel<bf16, dim, heads, true>.
struct ProgramAttention {
  int dim = 0, heads = 0;  // 0: there is none
  int parts = 0, columns = 0, count = 0;
  float* scratch = nullptr;
  unsigned* counters = nullptr;
  NewTokens tokens;
  AttentionArgs args;
  AttentionSequence sequences[kProgramSequences];
};

/// All items; on return every block has passed the barrier at `target`, before which projections are not there.
template <int kDim, int kHeads>
__device__ __forceinline__ void attend(const ProgramAttention& attention, uint8_t* memory, int groups,
                                       const GridBarrier& barrier, unsigned target) {
  using Shared = DecodeShared<__nv_bfloat16, kDim, kHeads>;
  const int in_block = static_cast<int>(threadIdx.x) / kDecodeThreads;
  const DecodeGroup group{static_cast<int>(threadIdx.x) % kDecodeThreads, 1 + in_block};
  auto& shared = reinterpret_cast<Shared*>(memory)[in_block];
  const int items = in_block < groups ? attention.parts * attention.columns * attention.count : 0;
  bool has_waited = target == 0;
#pragma unroll 1
  for (int i = blockIdx.x + gridDim.x * in_block; i < items; i += gridDim.x * groups) {
    const int rest = i / attention.parts;
    const DecodeItem item{i % attention.parts, rest % attention.columns, rest / attention.columns};
    attend_query<__nv_bfloat16, kDim, kHeads, true>(group, item, attention.args, attention.sequences[item.sequence],
                                                    attention.tokens, attention.scratch, attention.counters, shared,
                                                    [&] {
                                                      if (has_waited) return;
                                                      has_waited = true;
                                                      if (group.thread == 0) wait_at(barrier, target);
                                                      group.sync();
                                                    });
    group.sync();
  }
  uint32_t has_any;
  asm volatile("{\n.reg .pred p, q;\nsetp.ne.u32 p, %1, 0;\nbar.red.or.pred q, 0, %2, p;\nselp.u32 %0, 1, 0, q;\n}"
               : "=r"(has_any)
               : "r"(static_cast<uint32_t>(has_waited)), "n"(kFewRowsWarps * 32)
               : "memory");
  if (has_any) return;
  if (threadIdx.x == 0) wait_at(barrier, target);
  sync_few_rows();
}

}  // namespace nibble::kernels::cuda
