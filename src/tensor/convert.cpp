// Pieces small enough to stay in a thread's cache between conversion and copy.
#include "tensor/convert.h"

#include <algorithm>
#include <cstring>

#include "base/checked.h"

namespace nibble {

Tensor converted(const Tensor& x, DType dtype, ThreadPool& pool) {
  constexpr int64_t kPiece = int64_t{1} << 16;
  if (x.dtype() == dtype || x.count() <= kPiece || x.device().is_cuda()) return x.to(dtype);
  Tensor result(dtype, x.shape());
  pool.parallel_for(ceil_div(x.count(), kPiece), [&](int64_t piece, int) {
    const int64_t first = piece * kPiece, count = std::min(kPiece, x.count() - first);
    const Tensor part =
        Tensor::view(x.dtype(), {count}, x.as<std::byte>() + first * size_of(x.dtype()), nullptr).to(dtype);
    std::memcpy(result.as<std::byte>() + first * size_of(dtype), part.data(), static_cast<size_t>(part.size_bytes()));
  });
  return result;
}

}  // namespace nibble
