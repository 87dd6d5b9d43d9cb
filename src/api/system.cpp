// include/nibble/system.h over the device list, the kernel tables, the formats and the architectures.
#include "nibble/system.h"

#include <fmt/format.h>

#include "device/cpu.h"
#include "device/cuda.h"
#include "device/device.h"
#include "kernels/cpu/table.h"
#include "kernels/cuda/table.h"
#include "kernels/reference/table.h"
#include "models/registry.h"
#include "ops/profile.h"
#include "quant/format.h"

namespace nibble {
namespace {

/// Names of the backends whose table has the entry that `get` picks.
template <typename Get>
KernelRow row(const char* entry, Get get) {
  KernelRow result{entry, {}};
  const auto add = [&](const kernels::Kernels& table) {
    if (get(table)) result.backends.emplace_back(table.name);
  };
  add(kernels::reference::table());
  for (const auto& isa : kernels::cpu::isas()) add(*isa.table);
  if (kernels::cuda::table()) add(*kernels::cuda::table());
  return result;
}

std::vector<KernelRow> kernel_rows() {
  using kernels::Kernels;
  return {
#define NIBBLE_ROW(entry) row(#entry, [](const Kernels& k) { return k.entry != nullptr; })
      NIBBLE_ROW(quantize_4bit),
      NIBBLE_ROW(dequantize_4bit),
      NIBBLE_ROW(quantize_8bit),
      NIBBLE_ROW(dequantize_8bit),
      NIBBLE_ROW(center),
      NIBBLE_ROW(quantize_int8_rows),
      NIBBLE_ROW(dequantize_int8_rows),
      NIBBLE_ROW(matmul_4bit),
      NIBBLE_ROW(matmul_4bit_fused),
      NIBBLE_ROW(matmul_dense),
      NIBBLE_ROW(matmul_int8),
      NIBBLE_ROW(matmul_int8_fused),
      NIBBLE_ROW(rms_norm),
      NIBBLE_ROW(layer_norm),
      NIBBLE_ROW(rope),
      NIBBLE_ROW(cache_append),
      NIBBLE_ROW(rotate_append),
      NIBBLE_ROW(attention),
      NIBBLE_ROW(rotate_attention),
      NIBBLE_ROW(activate),
      NIBBLE_ROW(embed),
      NIBBLE_ROW(split_heads),
      NIBBLE_ROW(softcap),
      NIBBLE_ROW(argmax),
      NIBBLE_ROW(penalize),
      NIBBLE_ROW(top_candidates),
      NIBBLE_ROW(route_experts),
      NIBBLE_ROW(scatter_add_rows),
      NIBBLE_ROW(input_gradient),
      NIBBLE_ROW(weight_gradient),
      NIBBLE_ROW(rms_norm_gradient),
      NIBBLE_ROW(layer_norm_gradient),
      NIBBLE_ROW(activate_gradient),
      NIBBLE_ROW(attention_gradient),
      NIBBLE_ROW(cross_entropy),
      NIBBLE_ROW(dropout),
      NIBBLE_ROW(add_scaled),
      NIBBLE_ROW(low_rank_update),
      NIBBLE_ROW(low_rank_gradient),
      NIBBLE_ROW(scale_columns),
      NIBBLE_ROW(sum_columns),
      NIBBLE_ROW(route_experts_gradient),
      NIBBLE_ROW(dot_rows),
      NIBBLE_ROW(optimizer_step_32bit),
      NIBBLE_ROW(optimizer_step_8bit),
      NIBBLE_ROW(sum_squares),
#undef NIBBLE_ROW
  };
}

}  // namespace

std::string_view version() { return NIBBLE_VERSION; }

std::string cublas_lt_version() { return kernels::cuda::library_version(); }

SystemInfo system_info() {
  SystemInfo info;
  const auto cpu = device::describe_cpu();
  device::CudaSupport cuda = device::describe_cuda();
  device::fill_free_memory(cuda);
  info.devices.push_back({"cpu", cpu.model_name, cpu.memory_bytes, cpu.free_memory_bytes});
  for (const auto& gpu : cuda.devices)
    info.devices.push_back({device::to_string({gpu.index}),
                            fmt::format("{}, compute capability {}.{}, {} multiprocessors", gpu.name,
                                        gpu.capability / 10, gpu.capability % 10, gpu.multiprocessors),
                            gpu.memory_bytes, gpu.free_memory_bytes});
  info.cuda = {.missing = cuda.missing, .driver = cuda.driver, .runtime = cuda.runtime, .cublas_lt = {}};
  if (cuda.missing.empty()) info.cuda.cublas_lt = cublas_lt_version();
  const kernels::Kernels* active = &kernels::cpu::table();
  for (const auto& isa : kernels::cpu::isas()) info.isas.push_back({isa.name, isa.is_supported, isa.table == active});
  info.kernels = kernel_rows();
  for (const auto& format : quant::formats()) info.formats.emplace_back(format.name);
  for (const auto& architecture : models::architectures()) info.architectures.emplace_back(architecture.name);
  info.threads = available_cpus();
  return info;
}

std::string profile_report() { return ops::profile_report(); }

int64_t peak_rss_bytes() { return device::peak_rss_bytes(); }

double measure_read_bandwidth(int threads) {
  ThreadPool pool(threads);
  return device::measure_read_bandwidth(pool);
}

}  // namespace nibble
