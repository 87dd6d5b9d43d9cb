// The GPUs of this machine, or what keeps them from being used.
#include "base/error.h"
#include "device/cuda.h"
#include "device/cuda/status.h"

namespace nibble::device {
namespace {

/// CUDA counts versions as 1000 * major + 10 * minor.
std::string version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

std::string missing_text(cudaError_t status, const CudaSupport& support) {
  if (support.driver.empty()) return "no NVIDIA driver is installed (libcuda.so.1 was not found)";
  if (status == cudaErrorInsufficientDriver)
    return fmt::format("the NVIDIA driver supports CUDA {}, this program needs {}: update the driver", support.driver,
                       support.runtime);
  if (status == cudaErrorNoDevice) return "the NVIDIA driver shows no GPU to this process";
  return fmt::format("CUDA cannot start: {}", cudaGetErrorString(status));
}

CudaDescription describe(int index) {
  CudaDescription device;
  device.index = index;
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, index), "reading the GPU's properties");
  device.name = properties.name;
  device.capability = properties.major * 10 + properties.minor;
  device.multiprocessors = properties.multiProcessorCount;
  device.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  return device;
}

}  // namespace

void check_cuda(cudaError_t status, std::string_view what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  const auto code = status == cudaErrorMemoryAllocation ? ErrorCode::out_of_memory : ErrorCode::device;
  int index = 0;
  cudaGetDevice(&index);
  // What has broken the context stays: the next call that does nothing finds it again. So it does while a stream is
  // being recorded, which ends.
  const bool is_recording = status >= cudaErrorStreamCaptureUnsupported && status <= cudaErrorStreamCaptureWrongThread;
  const bool is_lost = code == ErrorCode::device && !is_recording && cudaFree(nullptr) == status;
  cudaGetLastError();
  fail(code, "cuda:{}: {} failed: {} ({}){}", index, what, cudaGetErrorString(status), cudaGetErrorName(status),
       is_lost ? "; this process cannot use the GPU any more" : "");
}

CudaSupport describe_cuda() {
  CudaSupport support;
  int version = 0;
  if (cudaRuntimeGetVersion(&version) == cudaSuccess) support.runtime = version_text(version);
  if (cudaDriverGetVersion(&version) == cudaSuccess && version > 0) support.driver = version_text(version);
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (status != cudaSuccess || count == 0) {
    support.missing = missing_text(status == cudaSuccess ? cudaErrorNoDevice : status, support);
    return support;
  }
  try {
    for (int i = 0; i < count; ++i) support.devices.push_back(describe(i));
  } catch (const Error& error) {
    support.devices.clear();
    support.missing = error.what();
  }
  return support;
}

void fill_free_memory(CudaSupport& support) {
  for (CudaDescription& device : support.devices) {
    size_t free_bytes = 0, total_bytes = 0;
    if (cudaSetDevice(device.index) == cudaSuccess && cudaMemGetInfo(&free_bytes, &total_bytes) == cudaSuccess)
      device.free_memory_bytes = static_cast<int64_t>(free_bytes);
  }
  cudaGetLastError();  // a GPU that did not answer is no error of what comes next
}

}  // namespace nibble::device
