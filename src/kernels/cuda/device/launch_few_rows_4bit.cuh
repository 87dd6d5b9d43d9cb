// Launches of few_rows.cuh over 4-bit weights, for the files that compile them.
#pragma once

#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/weights_4bit.cuh"
#include "kernels/cuda/matmul_4bit.h"

namespace nibble::kernels::cuda {

template <typename T, bool kNested>
void multiply_few_rows(const Context& context, const Fused4BitArgs& fused, int64_t limit) {
  FewRowsArgs args{};
  args.jobs = with_weights(fused.jobs, fused.count, kFewRowsTile);
  if (fused.is_gated)
    args.jobs.tiles = static_cast<int>((fused.jobs[0].rows + kFewRowsTile / 2 - 1) / (kFewRowsTile / 2));
  const float scale = book_scale(fused.jobs[0].code_book, fused.input.compute);
  for (int i = 0; i < 16; ++i) args.book[i] = fused.jobs[0].code_book[i] * scale;
  args.book_scale = 1.0f / scale;
  args.norm_weight = fused.norm_weight;
  args.eps = fused.eps;
  args.weight_offset = fused.weight_offset;
  args.is_gated = fused.is_gated;
  args.activation = fused.activation;
  args.gated_out = fused.gated_out;
  launch_few_rows_each<FewRows4Bit<T, kNested>>(context, fused.input, args, limit);
}

template <typename T, bool kNested>
bool multiply_few(const Context& context, const Fused4BitArgs& args) {
  const MatmulInput& input = args.input;
  if (!is_regular(context, input, args.jobs, args.count, 64)) return false;
  const int64_t limit = few_rows_limit<FewRows4Bit<T, kNested>>(context, input.cols);
  if (limit == 0 || (!input.batch_invariant && input.m > limit)) return false;
  multiply_few_rows<T, kNested>(context, args, limit);
  return true;
}

}  // namespace nibble::kernels::cuda
