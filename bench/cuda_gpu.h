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
    auto* handle = static_cast<cudaStream_t>(stream->handle());
    cudaEvent_t begin, end;
    require(cudaEventCreate(&begin));
    require(cudaEventCreate(&end));
    for (int i = 0; i < 3; ++i) graph->launch();
    std::vector<float> times;
    for (int i = 0; i < 15; ++i) {
      require(cudaEventRecord(begin, handle));
      graph->launch();
      require(cudaEventRecord(end, handle));
      require(cudaEventSynchronize(end));
      float milliseconds = 0;
      require(cudaEventElapsedTime(&milliseconds, begin, end));
      times.push_back(milliseconds);
    }
    std::nth_element(times.begin(), times.begin() + 7, times.end());
    return times[7] * 1e-3;
  }

  void measure_copy() {
    const int64_t size = int64_t{1} << 31;
    const auto from = stream->allocate(size), to = stream->allocate(size);
    bandwidth = 2 * static_cast<double>(size) / time([&] { stream->copy(to.get(), from.get(), size); });
    std::printf("copy, read + written: %.0f GB/s\n", bandwidth * 1e-9);
  }
};

}  // namespace nibble::bench
