// The ways to multiply by LLM.int8() weights, each compiled in a file of its own: matmul_int8.cu picks one for a call.
// bool: whether the call was taken.
#pragma once

#include "kernels/cuda/device/job.cuh"

namespace nibble::kernels::cuda {

/// Up to eight rows of x in one launch, few_rows.cuh; any number of them one by one if their bits must not depend on
/// each other. cols: a multiple of 16.
bool multiply_few_int8(const Context& context, const FusedInt8Args& args);

/// More rows of x on Hopper, int8_tile.cuh. False also where the driver can't describe matrices to the copy engine;
/// what was launched then does no harm.
bool multiply_tiles_int8(const Context& context, const MatmulInput& input, float threshold, const MatmulInt8Job* jobs,
                         int64_t count);

/// The jobs of a launch whose tiles have tile_rows rows of weights.
inline DeviceJobs with_weights(const MatmulInt8Job* jobs, int64_t count, int tile_rows) {
  DeviceJobs all = device_jobs(jobs, count, tile_rows);
  for (int64_t j = 0; j < count; ++j)
    all.jobs[j].weight = {reinterpret_cast<const uint8_t*>(jobs[j].w), {.values = jobs[j].absmax}, 0};
  return all;
}

}  // namespace nibble::kernels::cuda
