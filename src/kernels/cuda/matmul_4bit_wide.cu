// 4-bit weights by any number of rows of x: also blocks of 32 and columns that are no multiple of 64.
#include "kernels/cuda/device/launch.cuh"
#include "kernels/cuda/device/weights_tile.cuh"
#include "kernels/cuda/matmul_4bit.h"

namespace nibble::kernels::cuda {
namespace {

int64_t blocks_of(const MatmulInput& input, const Matmul4BitJob& job) {
  return quant::block_count(job.rows * input.cols, job.block);
}

}  // namespace

template <typename T>
void multiply_wide_tiles(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count) {
  using Launch = TileLaunch<Tile4Bit<T>, TileShape<256, 2>>;
  TileArgs args{};
  args.jobs = with_weights(jobs, count, Launch::kRows);
  std::copy_n(jobs[0].code_book, 16, args.book);
  args.waits_for_scales = is_nested(jobs[0]);
  int64_t scales = 0;
  for (int64_t j = 0; args.waits_for_scales && j < count; ++j) scales += blocks_of(input, jobs[j]);
  const TileScratch scratch = Launch::reserve(context, input, scales * 4);
  PrepareArgs prepare{};
  float* next = scratch.more;
  for (int64_t j = 0; args.waits_for_scales && j < count; ++j) {
    prepare.absmax[j] = {jobs[j].absmax, blocks_of(input, jobs[j]), next};
    args.jobs.jobs[j].weight.absmax.values = next;
    next += blocks_of(input, jobs[j]);
  }
  Launch::template prepare<T, ColumnOrder::runs_of_32>(context, input, scratch, prepare);
  Launch::run(context, input, scratch, args);
}

template void multiply_wide_tiles<__nv_bfloat16>(const Context& context, const MatmulInput& input,
                                                 const Matmul4BitJob* jobs, int64_t count);
template void multiply_wide_tiles<__half>(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs,
                                          int64_t count);

}  // namespace nibble::kernels::cuda
