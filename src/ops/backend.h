// The kernel table that this process runs on, and the threads it runs with.
#pragma once

#include <memory>

#include "base/thread_pool.h"
#include "kernels/kernels.h"

namespace nibble::ops {

/// The table that environment().backend names: "cpu" (or nothing) the fast kernels, "reference" the plain loops.
/// Errors: invalid_argument for any other name.
const kernels::Kernels& kernel_table();

/// Kernels with the pool they run on. Shared by everything that belongs to one model. One call at a time.
class Backend {
 public:
  /// `threads`: 0 means one per CPU this process may use.
  explicit Backend(int threads = 0);

  const kernels::Kernels& kernels() const { return kernels_; }
  /// Runs on all threads.
  const kernels::Context& context() const { return context_; }
  /// Runs on the calling thread: for work that is smaller than waking the others.
  const kernels::Context& serial() const { return serial_; }
  /// context() for at least `elements` worth sharing, else serial().
  const kernels::Context& context_for(int64_t elements) const;
  ThreadPool& pool() const { return *pool_; }

 private:
  const kernels::Kernels& kernels_;
  std::unique_ptr<ThreadPool> pool_;
  kernels::Context context_;
  kernels::Context serial_;
};

}  // namespace nibble::ops
