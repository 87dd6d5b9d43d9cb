// CudaStream over the CUDA runtime.
#include "base/error.h"
#include "device/cuda.h"
#include "device/cuda/memory.h"
#include "device/cuda/staging.h"
#include "device/cuda/status.h"

namespace nibble::device {
namespace {

class RuntimeGraph final : public CudaGraph {
 public:
  RuntimeGraph(cudaGraph_t graph, cudaStream_t stream) : stream_(stream) {
    const cudaError_t status = cudaGraphInstantiate(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    check_cuda(status, "preparing a graph");
  }
  ~RuntimeGraph() override {
    if (executable_) cudaGraphExecDestroy(executable_);
  }
  RuntimeGraph(const RuntimeGraph&) = delete;
  RuntimeGraph& operator=(const RuntimeGraph&) = delete;
  void launch() override { check_cuda(cudaGraphLaunch(executable_, stream_), "launching a graph"); }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t executable_ = nullptr;
};

class RuntimeMark final : public CudaMark {
 public:
  explicit RuntimeMark(cudaStream_t stream) {
    check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "creating an event");
    const cudaError_t status = cudaEventRecord(event_, stream);
    if (status != cudaSuccess) cudaEventDestroy(event_);
    check_cuda(status, "recording an event");
  }
  ~RuntimeMark() override { cudaEventDestroy(event_); }
  RuntimeMark(const RuntimeMark&) = delete;
  RuntimeMark& operator=(const RuntimeMark&) = delete;
  cudaEvent_t event() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

/// Destroyed after everything that may still hold its memory has been synchronized with it.
struct OwnedStream {
  cudaStream_t stream = nullptr;
  OwnedStream() { check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream"); }
  ~OwnedStream() {
    cudaStreamSynchronize(stream);
    cudaStreamDestroy(stream);
  }
  OwnedStream(const OwnedStream&) = delete;
  OwnedStream& operator=(const OwnedStream&) = delete;
};

class RuntimeStream final : public CudaStream {
 public:
  explicit RuntimeStream(CudaDescription description)
      : description_(std::move(description)),
        memory_(std::make_shared<CudaMemory>(description_.index)),
        staging_(stream_.stream) {}

  const CudaDescription& description() const override { return description_; }
  void* handle() const override { return stream_.stream; }
  void activate() const override { check_cuda(cudaSetDevice(description_.index), "choosing the GPU"); }

  std::shared_ptr<void> allocate(int64_t size_bytes) override { return memory_->allocate(size_bytes); }
  std::shared_ptr<void> allocate_pinned(int64_t size_bytes) override {
    activate();
    void* data = nullptr;
    const cudaError_t status = cudaMallocHost(&data, static_cast<size_t>(size_bytes));
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      fail(ErrorCode::out_of_memory, "cuda:{}: out of memory: {} bytes of pinned main memory were asked for",
           description_.index, size_bytes);
    }
    check_cuda(status, "allocating pinned memory");
    return {data, [](void* pointer) { cudaFreeHost(pointer); }};
  }
  void limit_memory(int64_t most_bytes) override { memory_->limit(most_bytes); }
  void release_unused() override { memory_->release_unused(); }
  int64_t reserved_bytes() const override { return memory_->reserved_bytes(); }
  int64_t peak_bytes() const override { return memory_->peak_bytes(); }

  void upload(void* to, const void* from, int64_t size_bytes, ThreadPool* pool) override {
    activate();
    staging_.upload(to, from, size_bytes, pool);
  }
  void download(void* to, const void* from, int64_t size_bytes) override {
    copy(to, from, size_bytes);
    synchronize();
  }
  void copy(void* to, const void* from, int64_t size_bytes) override {
    activate();
    check_cuda(cudaMemcpyAsync(to, from, static_cast<size_t>(size_bytes), cudaMemcpyDefault, stream_.stream),
               "copying");
  }
  void copy_rows(void* to, int64_t to_stride, const void* from, int64_t from_stride, int64_t row_bytes,
                 int64_t rows) override {
    activate();
    check_cuda(
        cudaMemcpy2DAsync(to, static_cast<size_t>(to_stride), from, static_cast<size_t>(from_stride),
                          static_cast<size_t>(row_bytes), static_cast<size_t>(rows), cudaMemcpyDefault, stream_.stream),
        "copying rows");
  }
  void fill_zero(void* to, int64_t size_bytes) override {
    activate();
    check_cuda(cudaMemsetAsync(to, 0, static_cast<size_t>(size_bytes), stream_.stream), "clearing memory");
  }

  std::unique_ptr<CudaMark> mark() override {
    activate();
    return std::make_unique<RuntimeMark>(stream_.stream);
  }
  void wait_for(const CudaMark& mark) override {
    check_cuda(cudaStreamWaitEvent(stream_.stream, static_cast<const RuntimeMark&>(mark).event(), 0),
               "waiting for another stream");
  }
  void synchronize() override {
    activate();
    check_cuda(cudaStreamSynchronize(stream_.stream), "waiting for the GPU");
  }
  void check() const override { check_cuda(cudaGetLastError(), "a launch"); }

  std::unique_ptr<CudaGraph> capture(const std::function<void()>& work) override {
    activate();
    check_cuda(cudaStreamBeginCapture(stream_.stream, cudaStreamCaptureModeThreadLocal), "recording a graph");
    cudaGraph_t graph = nullptr;
    try {
      work();
    } catch (...) {
      if (cudaStreamEndCapture(stream_.stream, &graph) == cudaSuccess && graph) cudaGraphDestroy(graph);
      cudaGetLastError();
      throw;
    }
    check_cuda(cudaStreamEndCapture(stream_.stream, &graph), "recording a graph");
    return std::make_unique<RuntimeGraph>(graph, stream_.stream);
  }

 private:
  CudaDescription description_;
  std::shared_ptr<CudaMemory> memory_;
  OwnedStream stream_;
  StagingRing staging_;
};

}  // namespace

void synchronize_stream(void* stream) {
  check_cuda(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "waiting for the GPU");
}

std::shared_ptr<CudaStream> open_cuda(int index) {
  const CudaSupport support = describe_cuda();
  if (!support.missing.empty()) fail(ErrorCode::device, "cuda:{}: {}", index, support.missing);
  const auto count = static_cast<int>(support.devices.size());
  require(index >= 0 && index < count, "cuda:{}: there is no such GPU, expected cuda:0 to cuda:{}", index, count - 1);
  const CudaDescription& description = support.devices[static_cast<size_t>(index)];
  if (description.capability < kLeastCapability)
    fail(ErrorCode::device, "cuda:{}: {} has compute capability {}.{}, expected {}.{} or newer", index,
         description.name, description.capability / 10, description.capability % 10, kLeastCapability / 10,
         kLeastCapability % 10);
  check_cuda(cudaSetDevice(index), "choosing the GPU");
  return std::make_shared<RuntimeStream>(description);
}

}  // namespace nibble::device
