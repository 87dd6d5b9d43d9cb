// A barrier of all blocks of a cooperative launch, by one thread of each: its block meets before and after.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::kernels::cuda {

/// Two counters in device memory; zero between launches.
struct GridBarrier {
  unsigned* arrived;
  unsigned* gone;
};

/// Stops the program where a wait takes longer than anything that could end it: better than to hang.
class PatientWait {
 public:
  __device__ __forceinline__ void poll() {
    if (++polls_ % 1024 != 0) return;
    uint64_t now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    if (begin_ == 0) begin_ = now;
    if (now - begin_ > kLongest) __trap();
  }

 private:
  static constexpr uint64_t kLongest = 4'000'000'000;  // ns
  unsigned polls_ = 0;
  uint64_t begin_ = 0;
};

/// All that the block wrote before may be read by a block that has waited.
__device__ __forceinline__ void arrive_at(const GridBarrier& barrier) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(barrier.arrived) : "memory");
}

/// Until there were `target` arrivals.
__device__ __forceinline__ void wait_at(const GridBarrier& barrier, unsigned target) {
  const auto arrived = [&] {
    unsigned count;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(barrier.arrived) : "memory");
    return count;
  };
  PatientWait wait;
  while (arrived() < target) wait.poll();
}

/// The last call of a launch: leaves the counters zero.
__device__ __forceinline__ void leave(const GridBarrier& barrier) {
  if (atomicAdd(barrier.gone, 1u) != gridDim.x - 1) return;
  *barrier.arrived = 0;
  *barrier.gone = 0;
}

}  // namespace nibble::kernels::cuda
