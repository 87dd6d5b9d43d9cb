// Conversion of large tensors by all threads.
#pragma once

#include "base/thread_pool.h"
#include "tensor/tensor.h"

namespace nibble {

/// x.to(dtype).
Tensor converted(const Tensor& x, DType dtype, ThreadPool& pool);

}  // namespace nibble
