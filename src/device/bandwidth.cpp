// The memory bandwidth of a GPU, by copying.
#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>

#include "base/error.h"
#include "device/cuda.h"

namespace nibble::device {
namespace {

struct TwoBuffers {
  std::shared_ptr<void> first, second;
  int64_t bytes;  // of each
};

/// 512 MB each, less where a model has left less.
TwoBuffers two_buffers(CudaStream& stream) {
  constexpr int64_t kMost = int64_t{512} << 20, kLeast = int64_t{32} << 20;
  for (int64_t bytes = kMost;; bytes /= 2) {
    try {
      auto first = stream.allocate(bytes);
      return {std::move(first), stream.allocate(bytes), bytes};
    } catch (const Error& error) {
      if (error.code() != ErrorCode::out_of_memory || bytes <= kLeast) throw;
    }
  }
}

}  // namespace

double measure_read_bandwidth(CudaStream& stream) {
  constexpr int kCopies = 8;
  const auto [from, to, bytes] = two_buffers(stream);
  stream.fill_zero(from.get(), bytes);
  double best = 0;
  for (int pass = 0; pass < 5; ++pass) {
    stream.synchronize();
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < kCopies; ++i) stream.copy(to.get(), from.get(), bytes);
    stream.synchronize();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    best = std::max(best, 2.0 * kCopies * static_cast<double>(bytes) / seconds);
  }
  return best;
}

}  // namespace nibble::device
