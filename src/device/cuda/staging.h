// A ring of pinned buffers between pageable memory and a GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <memory>

#include "base/thread_pool.h"

namespace nibble::device {

/// While the GPU copies one buffer, the next is being filled.
class StagingRing {
 public:
  explicit StagingRing(cudaStream_t stream) : stream_(stream) {}
  ~StagingRing();
  StagingRing(const StagingRing&) = delete;
  StagingRing& operator=(const StagingRing&) = delete;

  /// In the order of the stream; `from` may change on return.
  void upload(void* to, const void* from, int64_t size_bytes, ThreadPool* pool);

 private:
  struct Slot {
    void* data = nullptr;
    cudaEvent_t copied = nullptr;  // when the GPU has read it
  };
  Slot& next_slot();

  cudaStream_t stream_;
  std::array<Slot, 4> slots_;
  size_t next_ = 0;
};

}  // namespace nibble::device
