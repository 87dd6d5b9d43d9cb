// Launches of few_rows_4bit.cuh, for the files that compile it.
#pragma once

#include "kernels/cuda/device/few_rows_4bit.cuh"
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/vector.cuh"
#include "kernels/cuda/matmul_4bit.h"

namespace nibble::kernels::cuda {
namespace few4 {

inline int64_t stride_of(int64_t cols) { return (cols + kChunk - 1) / kChunk * kChunk + kXPadding; }

inline int64_t shared_bytes(int64_t m, int64_t count, int64_t cols, int scale_bytes) {
  return Layout(static_cast<int>(m), static_cast<int>(count), scale_bytes, stride_of(cols) * 2).end;
}

/// Rows of x that one launch takes; 0 if the columns are too many.
inline int64_t rows_limit(const Context& context, int64_t count, int64_t cols) {
  int64_t m = kMaxRows;
  while (m > 0 && shared_bytes(m, count, cols, kScaleBytes<false, false>) > shared_limit(context.capability)) --m;
  return m;
}

/// All jobs' blocks are of 64 and rows whole chunks: absmax then is copied without looking at each.
inline bool is_whole(const DeviceJobs& jobs, int64_t cols) {
  bool is = cols % kChunk == 0;
  for (int j = 0; j < jobs.count; ++j) is = is && jobs.jobs[j].weight.block_shift == 6;
  return is;
}

template <typename T, bool kNested, bool kWhole>
void launch(const Context& context, FewRows4BitArgs& args) {
  constexpr int kScales = kScaleBytes<kNested, kWhole>;
  const int64_t shared = shared_bytes(args.m, args.jobs.count, args.cols, kScales);
  const auto kernel = few_rows_4bit_kernel<T, kNested, kWhole>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  // As attention beside it: a multiprocessor changes its share of shared memory only when it is empty.
  cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  const auto blocks = static_cast<unsigned>(std::min(args.jobs.tiles, context.multiprocessors));
  launch_dependent(context, kernel, blocks, kWarps * 32, static_cast<size_t>(shared), args);
}

inline FewRows4BitArgs args_of(const Fused4BitArgs& fused) {
  FewRows4BitArgs args{};
  args.jobs = with_weights(fused.jobs, fused.count, kTile);
  if (fused.is_gated) args.jobs.tiles = static_cast<int>((fused.jobs[0].rows + kTile / 2 - 1) / (kTile / 2));
  const float scale = book_scale(fused.jobs[0].code_book, fused.input.compute);
  for (int i = 0; i < 16; ++i) args.book[i] = fused.jobs[0].code_book[i] * scale;
  args.book_scale = 1.0f / scale;
  args.norm_weight = fused.norm_weight;
  args.eps = fused.eps;
  args.weight_offset = fused.weight_offset;
  args.is_gated = fused.is_gated;
  args.activation = fused.activation;
  return args;
}

}  // namespace few4

/// Any number of rows of x, `limit` a launch: a row's bits do not depend on how many there are.
template <typename T, bool kNested>
bool multiply_few(const Context& context, const Fused4BitArgs& fused) {
  const MatmulInput& input = fused.input;
  if (!is_regular(context, input, fused.jobs, fused.count, 64)) return false;
  const int64_t limit = few4::rows_limit(context, fused.count, input.cols);
  if (limit == 0 || (!input.batch_invariant && input.m > limit)) return false;
  FewRows4BitArgs args = few4::args_of(fused);
  const DeviceJobs jobs = args.jobs;
  for (int64_t first = 0; first < input.m; first += limit) {
    const MatmulInput part = rows_of(input, first, std::min(limit, input.m - first));
    if (args.is_gated) args.gated_out = output_from(fused.gated_out, first, 0);
    for (int j = 0; j < jobs.count; ++j) args.jobs.jobs[j].out = output_from(jobs.jobs[j].out, first, 0);
    args.x = DeviceX(part);
    args.m = static_cast<int>(part.m);
    args.cols = static_cast<int>(part.cols);
    args.x_stride = static_cast<int>(few4::stride_of(part.cols));
    few4::is_whole(jobs, input.cols) ? few4::launch<T, kNested, true>(context, args)
                                     : few4::launch<T, kNested, false>(context, args);
  }
  return true;
}

}  // namespace nibble::kernels::cuda
