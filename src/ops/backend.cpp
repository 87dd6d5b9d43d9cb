// Chooses the kernel table once.
#include "ops/backend.h"

#include "base/environment.h"
#include "base/error.h"
#include "kernels/cpu/table.h"
#include "kernels/reference/table.h"

namespace nibble::ops {
namespace {

/// Below this many elements, waking a thread costs more than it saves.
constexpr int64_t kWorthSharing = 16384;

/// The fast table, with the reference's loops where it has none.
kernels::Kernels cpu_with_fallback() {
  kernels::Kernels k = kernels::cpu::table();
  const kernels::Kernels& reference = kernels::reference::table();
  const auto fill = [](auto& entry, auto fallback) {
    if (!entry) entry = fallback;
  };
  fill(k.quantize_4bit, reference.quantize_4bit);
  fill(k.dequantize_4bit, reference.dequantize_4bit);
  fill(k.quantize_8bit, reference.quantize_8bit);
  fill(k.dequantize_8bit, reference.dequantize_8bit);
  fill(k.quantize_int8_rows, reference.quantize_int8_rows);
  fill(k.dequantize_int8_rows, reference.dequantize_int8_rows);
  fill(k.matmul_4bit, reference.matmul_4bit);
  fill(k.matmul_dense, reference.matmul_dense);
  fill(k.matmul_int8, reference.matmul_int8);
  fill(k.rms_norm, reference.rms_norm);
  fill(k.layer_norm, reference.layer_norm);
  fill(k.rope, reference.rope);
  fill(k.cache_append, reference.cache_append);
  fill(k.attention, reference.attention);
  fill(k.activate, reference.activate);
  fill(k.embed, reference.embed);
  return k;
}

}  // namespace

const kernels::Kernels& kernel_table() {
  const std::string& name = environment().backend;
  if (name == "reference") return kernels::reference::table();
  if (!name.empty() && name != "cpu")
    fail(ErrorCode::invalid_argument, "NIBBLE_BACKEND={}: expected cpu or reference", name);
  static const kernels::Kernels cpu = cpu_with_fallback();
  return cpu;
}

Backend::Backend(int threads)
    : kernels_(kernel_table()), pool_(std::make_unique<ThreadPool>(threads)), context_{pool_.get()}, serial_{} {}

const kernels::Context& Backend::context_for(int64_t elements) const {
  return elements >= kWorthSharing ? context_ : serial_;
}

}  // namespace nibble::ops
