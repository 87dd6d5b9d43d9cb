// What a model runs on: the kernel table of a device, the threads or the stream it runs with, and memory there.
#pragma once

#include <memory>

#include "base/thread_pool.h"
#include "device/cuda.h"
#include "device/device.h"
#include "kernels/kernels.h"
#include "tensor/tensor.h"

namespace nibble::ops {

/// The CPU's table: what environment().backend names: "cpu" (or nothing) the fast kernels, "reference" the
/// plain loops.
/// Errors: invalid_argument for any other name.
const kernels::Kernels& kernel_table();

/// Kernels with the pool they run on. Shared by everything that belongs to one model. One call at a time.
class Backend {
 public:
  /// `threads`: 0 means one per CPU this process may use.
  /// Errors: device (no driver, too old, no GPU), invalid_argument (no such GPU).
  explicit Backend(int threads = 0, device::Device device = device::kCpu);
  ~Backend();

  device::Device device() const { return device_; }
  /// The GPU's stream; null on the CPU.
  device::CudaStream* cuda() const { return cuda_.get(); }
  const kernels::Kernels& kernels() const { return kernels_; }
  /// Runs on all threads.
  const kernels::Context& context() const { return context_for(kEverything); }
  /// Runs on the calling thread (on a GPU, as context()): for work that is smaller than waking the others.
  const kernels::Context& serial() const { return serial_; }
  /// context() for at least `elements` worth sharing, else serial().
  const kernels::Context& context_for(int64_t elements) const;
  ThreadPool& pool() const { return *pool_; }

  // Memory and copies. On the CPU, tensors lie in main memory and copies happen at once; on a GPU, in its memory and in
  // the order of the kernels.

  /// Uninitialized. Errors: out_of_memory.
  Tensor empty(DType dtype, Shape shape) const;
  /// `x` where the kernels reach it: itself, or a copy.
  Tensor to_device(const Tensor& x) const;
  /// `x` in main memory: itself, or a copy that is complete on return.
  Tensor to_host(const Tensor& x) const;
  /// From main memory, which may change on return.
  void upload(void* to, const void* from, int64_t size_bytes) const;
  /// Into main memory, complete on return. Errors: device.
  void download(void* to, const void* from, int64_t size_bytes) const;
  /// `rows` rows of `row_bytes` that start a stride apart, within the device.
  void copy_rows(void* to, int64_t to_stride, const void* from, int64_t from_stride, int64_t row_bytes,
                 int64_t rows) const;
  /// Within the device.
  void copy(void* to, const void* from, int64_t size_bytes) const;
  void fill_zero(void* to, int64_t size_bytes) const;
  /// Counts how often the kernels' scratch memory has moved: a recorded graph is stale when it has.
  int64_t scratch_moves() const;

 private:
  static constexpr int64_t kEverything = INT64_MAX;
  const kernels::Kernels& kernels_;
  std::unique_ptr<ThreadPool> pool_;
  kernels::Context context_;
  kernels::Context serial_;
  device::Device device_;
  std::shared_ptr<device::CudaStream> cuda_;
  class GpuScratch;
  std::unique_ptr<GpuScratch> scratch_;
  std::shared_ptr<void> counters_;
};

}  // namespace nibble::ops
