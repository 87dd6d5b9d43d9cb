// 4-bit products beside dense ones of the same shape, in turn on a GPU in the same state.
#pragma once

#include <cstdint>
#include <vector>

#include "bench/cuda_gpu.h"

namespace nibble::bench {

/// Tables in markdown of several shapes by rows of x, `ms` or, if empty, 1 to 4096. `pause_ms` before each replay lets
/// the GPU cool; 0: no gap between replays, so that the clocks are those of lasting load.
void bench_against_dense(Gpu& gpu, int pause_ms, std::vector<int64_t> ms);

}  // namespace nibble::bench
