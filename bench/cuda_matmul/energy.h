// What products cost: 4-bit and dense ones, each by itself for a second, with the driver's count of energy.
#pragma once

#include "bench/cuda_gpu.h"

namespace nibble::bench {

/// A table in markdown; a line that says so where the driver does not count.
void bench_energy(Gpu& gpu);

}  // namespace nibble::bench
