// This binary was built without nvcc: there are no GPUs, and asking for one says so.
#include "device/cuda.h"

#include "base/error.h"

namespace nibble::device {

CudaSupport describe_cuda() {
  CudaSupport support;
  support.missing = "this program was built without CUDA";
  return support;
}

void fill_free_memory(CudaSupport&) {}

void synchronize_stream(void*) {}

std::shared_ptr<void> offer_memory(int, std::function<bool()>) { return nullptr; }

std::shared_ptr<CudaStream> open_cuda(int index) {
  fail(ErrorCode::device, "cuda:{}: {}", index, describe_cuda().missing);
}

}  // namespace nibble::device
