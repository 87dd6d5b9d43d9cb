// The process-wide cancellation flag; lock-free, so a signal handler may set it.
#include "base/cancel.h"

#include <atomic>

#include "base/error.h"

namespace nibble {
namespace {
std::atomic<bool> cancelled{false};
static_assert(std::atomic<bool>::is_always_lock_free);
}  // namespace

void request_cancel() noexcept { cancelled.store(true, std::memory_order_relaxed); }
void reset_cancel() noexcept { cancelled.store(false, std::memory_order_relaxed); }
bool is_cancelled() noexcept { return cancelled.load(std::memory_order_relaxed); }

void throw_if_cancelled() {
  if (is_cancelled()) fail(ErrorCode::cancelled, "interrupted");
}

}  // namespace nibble
