// NVIDIA GPUs: what is there, memory in the order of a stream, copies, graphs. No CUDA header is seen above this one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/thread_pool.h"

namespace nibble::device {

struct CudaDescription {
  int index = 0;
  std::string name;
  int capability = 0;  // 90 for compute capability 9.0
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
  int64_t free_memory_bytes = 0;
};

/// What this process could do with GPUs. Never throws: what is wrong stands in `missing`.
struct CudaSupport {
  std::string missing;  // why there is no usable GPU; empty if there is one
  std::string driver;   // the newest CUDA version that the driver supports, "13.0"; empty without a driver
  std::string runtime;  // the CUDA version of this binary; empty if it was built without
  std::vector<CudaDescription> devices;
};
CudaSupport describe_cuda();
/// The compute capability that kernels need.
inline constexpr int kLeastCapability = 75;
/// Asks each GPU how much of its memory is free; starts a context on it, which takes a moment and some memory.
void fill_free_memory(CudaSupport& support);

/// Work that was recorded once, to be run again and again in the order of its stream.
class CudaGraph {
 public:
  virtual ~CudaGraph() = default;
  virtual void launch() = 0;
};

/// A point in a stream's work, for other streams of the GPU to wait for.
class CudaMark {
 public:
  virtual ~CudaMark() = default;
};

/// A stream of work on one GPU and the memory used in its order. One thread at a time.
/// Memory that its owners let go serves later work of the stream, and returns to the GPU when that runs short.
class CudaStream {
 public:
  virtual ~CudaStream() = default;

  virtual const CudaDescription& description() const = 0;
  /// The cudaStream_t.
  virtual void* handle() const = 0;
  /// Makes the GPU this thread's current one, which launches need.
  virtual void activate() const = 0;

  /// 256-byte aligned device memory. Errors: out_of_memory with the numbers.
  virtual std::shared_ptr<void> allocate(int64_t size_bytes) = 0;
  /// Main memory that the GPU copies from and to by itself. Errors: out_of_memory.
  virtual std::shared_ptr<void> allocate_pinned(int64_t size_bytes) = 0;
  /// What all streams of this process may take from the GPU, until another says something else or this one is gone and
  /// its memory, too; 0: as much as there is. Beyond it allocate() fails.
  virtual void limit_memory(int64_t most_bytes) = 0;
  /// Memory that its owners let go returns to the GPU.
  virtual void release_unused() = 0;
  /// Taken from the GPU, now and at most so far.
  virtual int64_t reserved_bytes() const = 0;
  virtual int64_t peak_bytes() const = 0;

  /// Copies through a ring of pinned buffers that `pool` fills (null: this thread). `from` may change on return.
  virtual void upload(void* to, const void* from, int64_t size_bytes, ThreadPool* pool = nullptr) = 0;
  /// Returns when the bytes are there.
  virtual void download(void* to, const void* from, int64_t size_bytes) = 0;
  /// Between pinned or device memory, in the order of the stream; both must live until then.
  virtual void copy(void* to, const void* from, int64_t size_bytes) = 0;
  /// The same for `rows` rows of `row_bytes` that start a stride apart.
  virtual void copy_rows(void* to, int64_t to_stride, const void* from, int64_t from_stride, int64_t row_bytes,
                         int64_t rows) = 0;
  virtual void fill_zero(void* to, int64_t size_bytes) = 0;

  /// The end of the work so far.
  virtual std::unique_ptr<CudaMark> mark() = 0;
  /// Later work begins when another stream has reached `mark`; the caller does not wait.
  virtual void wait_for(const CudaMark& mark) = 0;
  /// Waits for all work. Errors: device, if any of it failed.
  virtual void synchronize() = 0;
  /// Errors: device, if a launch was refused or earlier work is known to have failed.
  virtual void check() const = 0;
  /// Records what `work` puts on the stream, without running it. `work` must not allocate.
  virtual std::unique_ptr<CudaGraph> capture(const std::function<void()>& work) = 0;
};

/// Waits for the work of a cudaStream_t.
void synchronize_stream(void* stream);

/// Bytes a second that copies within the GPU's memory move, reading and writing together: best of several passes.
double measure_read_bandwidth(CudaStream& stream);

/// Memory of a GPU that this process can do without: where an allocation of any stream would fail, `release` is called
/// by its thread, and the allocation tried again if it returns true. Until the result is let go.
std::shared_ptr<void> offer_memory(int index, std::function<bool()> release);

/// Errors: invalid_argument (no such index; names those there are), device (no driver, driver too old, no GPU).
std::shared_ptr<CudaStream> open_cuda(int index);

}  // namespace nibble::device
