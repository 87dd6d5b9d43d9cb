// Chooses the kernel table once.
#include "ops/backend.h"

#include "base/environment.h"
#include "base/error.h"
#include "kernels/cpu/table.h"
#include "kernels/reference/table.h"
#include "ops/profile.h"

namespace nibble::ops {
namespace {

/// Below this many elements, waking a thread costs more than it saves.
constexpr int64_t kWorthSharing = 16384;

const kernels::Kernels& chosen_table() {
  const std::string& name = environment().backend;
  if (name == "reference") return kernels::reference::table();
  if (!name.empty() && name != "cpu")
    fail(ErrorCode::invalid_argument, "NIBBLE_BACKEND={}: expected cpu or reference", name);
  return kernels::cpu::table();
}

}  // namespace

const kernels::Kernels& kernel_table() { return environment().profile ? profiled(chosen_table()) : chosen_table(); }

Backend::Backend(int threads)
    : kernels_(kernel_table()), pool_(std::make_unique<ThreadPool>(threads)), context_{pool_.get()}, serial_{} {}

const kernels::Context& Backend::context_for(int64_t elements) const {
  return elements >= kWorthSharing ? context_ : serial_;
}

}  // namespace nibble::ops
