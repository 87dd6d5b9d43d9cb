// Asks the GPUs one by one until one has room.
#include "api/placement.h"

#include <algorithm>

#include "base/environment.h"
#include "device/device.h"

namespace nibble::api {
namespace {

std::string gigabytes(int64_t bytes) { return fmt::format("{:.2f} GB", static_cast<double>(bytes) * 1e-9); }

int64_t ask_free_bytes(const device::CudaSupport& support, int index) {
  device::CudaSupport one;
  one.devices.push_back(support.devices[static_cast<size_t>(index)]);
  device::fill_free_memory(one);
  return one.devices[0].free_memory_bytes;
}

}  // namespace

Placement choose_device(const device::CudaSupport& support, int64_t needed_bytes,
                        const std::function<int64_t(int index)>& free_bytes, int64_t max_memory) {
  if (!support.missing.empty()) return {"cpu", support.missing};
  std::string found;
  for (const device::CudaDescription& gpu : support.devices) {
    const std::string name = device::to_string({gpu.index});
    if (!found.empty()) found += ", ";
    if (gpu.capability < device::kLeastCapability) {
      found += fmt::format("{} has compute capability {}.{}", name, gpu.capability / 10, gpu.capability % 10);
      continue;
    }
    const int64_t free = free_bytes(gpu.index);
    if (free >= needed_bytes && (max_memory == 0 || max_memory >= needed_bytes))
      return {name, fmt::format("the model needs about {}, {} are free", gigabytes(needed_bytes), gigabytes(free))};
    found += fmt::format("{} has {} free", name, gigabytes(free));
  }
  if (max_memory > 0) found += fmt::format(", max_memory is {}", gigabytes(max_memory));
  return {"cpu", fmt::format("the model needs about {} on a GPU, {}", gigabytes(needed_bytes), found), true};
}

LoadOptions with_device(const ModelSource& source, const LoadOptions& options) {
  LoadOptions result = options;
  if (options.device_map != "auto") return result;
  Placement placement{"cpu", "NIBBLE_BACKEND names kernels of the CPU"};
  if (environment().backend.empty()) {
    const device::CudaSupport support = device::describe_cuda();
    const int64_t needed = support.missing.empty() ? needed_device_bytes(source, options) : 0;
    placement = choose_device(
        support, needed, [&](int index) { return ask_free_bytes(support, index); }, options.max_memory);
  }
  result.device_map = placement.device;
  if (placement.device == "cpu") result.max_memory = 0;  // of a GPU's
  const std::string text = fmt::format("device auto: {}: {}", placement.device, placement.reason);
  if (placement.is_refused && options.warning)
    options.warning(text);
  else if (options.notice)
    options.notice(text);
  return result;
}

}  // namespace nibble::api
