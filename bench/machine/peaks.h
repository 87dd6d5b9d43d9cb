// What the machine can do at most: memory read and copy bandwidth, and dot-product rates of the vector units.
#pragma once

#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "bench/harness.h"

namespace nibble::bench {

/// A peak: `amount` bytes, or operations (a multiplication and an addition are two), in one call of `contender`.
struct Peak {
  Contender contender;
  double amount;
  std::string unit;  // "GB/s" or "GOP/s"
};

/// "read", "copy" and, on processors with AVX-512 VNNI and BF16, "bf16 dot", "int8 dot", "fp32 fma".
/// The contenders use `pool` and hold the memory they stream.
std::vector<Peak> machine_peaks(ThreadPool& pool);

}  // namespace nibble::bench
