// Working memory of the kernels: one growing buffer per thread and use, so that a decode step allocates nothing.
#pragma once

#include <cstdint>

namespace nibble::kernels::cpu {

/// Uses that may be alive at the same time on one thread.
enum class Scratch : uint8_t {
  shared_input,
  shared_rows,
  panel,
  row,
  outliers,
  attention_tile,
  attention_partials,
  gradient,
  gradient_rows,
  count
};

/// At least `size_bytes` bytes, 64-byte aligned, of the calling thread; the contents are whatever the last user left.
/// Valid until this thread asks for the same use again. Throws std::bad_alloc.
void* scratch(Scratch use, int64_t size_bytes);

}  // namespace nibble::kernels::cpu
