// LLM.int8() by few rows of x.
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/vector.cuh"
#include "kernels/cuda/device/weights_int8_row.cuh"
#include "kernels/cuda/matmul_int8.h"

namespace nibble::kernels::cuda {
namespace {

/// `limit` rows of x a launch. False if they need more shared memory than there is.
template <typename Weights>
bool launch_few(const Context& context, const FusedInt8Args& fused, int64_t limit) {
  const int64_t room = few_rows_limit<Weights>(context, fused.input.cols);
  if (room < std::min(limit, fused.input.m)) return false;
  FewRowsArgs args{};
  args.jobs = with_weights(fused.jobs, fused.count, kFewRowsTile);
  if (fused.is_gated)
    args.jobs.tiles = static_cast<int>((fused.jobs[0].rows + kFewRowsTile / 2 - 1) / (kFewRowsTile / 2));
  args.threshold = fused.threshold;
  args.norm_weight = fused.norm_weight;
  args.eps = fused.eps;
  args.weight_offset = fused.weight_offset;
  args.is_gated = fused.is_gated;
  args.activation = fused.activation;
  args.gated_out = fused.gated_out;
  launch_few_rows_each<Weights>(context, fused.input, args, limit);
  return true;
}

/// True if the call was taken: one row of x, some, or any number of them one by one. Outlier columns are those of the
/// whole call; of a row alone where bits must not depend on the other rows.
template <typename T>
bool multiply_few_rows(const Context& context, const FusedInt8Args& args) {
  const MatmulInput& input = args.input;
  const bool is_alone = input.m == 1 || input.batch_invariant;
  if (is_alone && is_aligned(input.x, 16) && launch_few<FewRowsInt8Row<T>>(context, args, 1)) return true;
  if (args.norm_weight || (!is_alone && input.m > kFewRowsMax)) return false;
  return launch_few<FewRowsInt8<T>>(context, args, is_alone ? 1 : kFewRowsMax);
}

}  // namespace

bool multiply_few_int8(const Context& context, const FusedInt8Args& args) {
  bool is_done = false;
  with_float_type(args.input.compute,
                  [&](auto element) { is_done = multiply_few_rows<decltype(element)>(context, args); });
  return is_done;
}

}  // namespace nibble::kernels::cuda
