// What the GPU benchmarks of kernels share: a stream with its context, replays of recorded work, a copy's bandwidth.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "device/cuda.h"
#include "kernels/cuda/table.h"

namespace nibble::bench {

inline void require(cudaError_t status) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(status));
  std::exit(1);
}

inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// A moment of the stream.
class Event {
 public:
  Event() { require(cudaEventCreate(&event_)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(const device::CudaStream& stream) {
    require(cudaEventRecord(event_, static_cast<cudaStream_t>(stream.handle())));
  }
  /// Waits for it.
  double seconds_since(const Event& begin) const {
    require(cudaEventSynchronize(event_));
    float milliseconds = 0;
    require(cudaEventElapsedTime(&milliseconds, begin.event_, event_));
    return milliseconds * 1e-3;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

class BenchScratch final : public kernels::Scratch {
 public:
  BenchScratch(device::CudaStream& stream, int64_t size_bytes)
      : size_bytes_(size_bytes), memory_(stream.allocate(size_bytes)) {}
  void* reserve(int64_t size_bytes) override {
    if (size_bytes <= size_bytes_) return memory_.get();
    std::fprintf(stderr, "scratch: %lld bytes wanted\n", static_cast<long long>(size_bytes));
    std::exit(1);
  }

 private:
  int64_t size_bytes_;
  std::shared_ptr<void> memory_;
};

struct Gpu {
  std::shared_ptr<device::CudaStream> stream = device::open_cuda(0);
  BenchScratch scratch;
  std::shared_ptr<void> counters = stream->allocate(kernels::kCounters * 4);
  kernels::Context context;
  double bandwidth = 0;  // bytes/s of a copy, read and written

  explicit Gpu(int64_t scratch_bytes) : scratch(*stream, scratch_bytes) {
    stream->fill_zero(counters.get(), kernels::kCounters * 4);
    context = {nullptr,
               stream->handle(),
               &scratch,
               static_cast<uint32_t*>(counters.get()),
               kernels::cuda::usable_capability(stream->description().capability),
               stream->description().multiprocessors};
  }

  /// Median seconds of one replay.
  double time(const std::function<void()>& work) {
    work();
    stream->synchronize();
    const auto graph = stream->capture(work);
    for (int i = 0; i < 3; ++i) graph->launch();
    Event begin, end;
    std::vector<double> times;
    for (int i = 0; i < 15; ++i) {
      begin.record(*stream);
      graph->launch();
      end.record(*stream);
      times.push_back(end.seconds_since(begin));
    }
    return median(times);
  }

  void measure_copy() {
    const int64_t size = int64_t{1} << 31;
    const auto from = stream->allocate(size), to = stream->allocate(size);
    bandwidth = 2 * static_cast<double>(size) / time([&] { stream->copy(to.get(), from.get(), size); });
    std::printf("copy, read + written: %.0f GB/s\n", bandwidth * 1e-9);
  }
};

}  // namespace nibble::bench
