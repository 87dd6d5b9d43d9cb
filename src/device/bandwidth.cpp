// The memory bandwidth of a GPU, by copying.
#include <algorithm>
#include <chrono>

#include "device/cuda.h"

namespace nibble::device {

double measure_read_bandwidth(CudaStream& stream) {
  constexpr int64_t kBytes = int64_t{512} << 20;
  constexpr int kCopies = 8;
  const auto from = stream.allocate(kBytes), to = stream.allocate(kBytes);
  stream.fill_zero(from.get(), kBytes);
  double best = 0;
  for (int pass = 0; pass < 5; ++pass) {
    stream.synchronize();
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < kCopies; ++i) stream.copy(to.get(), from.get(), kBytes);
    stream.synchronize();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    best = std::max(best, 2.0 * kCopies * static_cast<double>(kBytes) / seconds);
  }
  return best;
}

}  // namespace nibble::device
