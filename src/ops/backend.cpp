// Chooses the kernel table once.
#include "ops/backend.h"

#include <cstring>

#include "base/checked.h"
#include "base/environment.h"
#include "base/error.h"
#include "kernels/cpu/table.h"
#include "kernels/cuda/table.h"
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

const kernels::Kernels& table_of(device::Device device) {
  if (!device.is_cuda()) return kernel_table();
  if (const kernels::Kernels* table = kernels::cuda::table()) return environment().profile ? profiled(*table) : *table;
  fail(ErrorCode::device, "{}: {}", device::to_string(device), device::describe_cuda().missing);
}

}  // namespace

/// One block that grows; what a launch in flight still uses stays its until the stream has passed it.
class Backend::GpuScratch final : public kernels::Scratch {
 public:
  explicit GpuScratch(device::CudaStream& stream) : stream_(stream) {}
  void* reserve(int64_t size_bytes) override {
    if (size_bytes > size_bytes_) {
      memory_.reset();
      size_bytes_ = 0;  // what follows may fail
      ++moves;
      stream_.release_unused();  // a smaller block serves nothing else
      memory_ = stream_.allocate(size_bytes);
      size_bytes_ = size_bytes;
    }
    return memory_.get();
  }
  int64_t moves = 0;

 private:
  device::CudaStream& stream_;
  std::shared_ptr<void> memory_;
  int64_t size_bytes_ = 0;
};

const kernels::Kernels& kernel_table() { return environment().profile ? profiled(chosen_table()) : chosen_table(); }

Backend::Backend(int threads, device::Device device)
    : kernels_(table_of(device)),
      pool_(std::make_unique<ThreadPool>(threads)),
      context_{.pool = pool_.get()},
      device_(device) {
  if (!device.is_cuda()) return;
  cuda_ = device::open_cuda(device.cuda);
  scratch_ = std::make_unique<GpuScratch>(*cuda_);
  constexpr int64_t kCounterBytes = kernels::kCounters * int64_t{sizeof(uint32_t)};
  counters_ = cuda_->allocate(kCounterBytes);
  cuda_->fill_zero(counters_.get(), kCounterBytes);
  context_.stream = cuda_->handle();
  context_.scratch = scratch_.get();
  context_.counters = static_cast<uint32_t*>(counters_.get());
  const int capability = cuda_->description().capability;
  context_.capability = kernels::cuda::usable_capability(capability);
  if (context_.capability == 0)
    fail(ErrorCode::device, "{}: this program holds no kernels for {}, compute capability {}.{}", to_string(device),
         cuda_->description().name, capability / 10, capability % 10);
  context_.multiprocessors = cuda_->description().multiprocessors;
  serial_ = context_;
}

Backend::~Backend() = default;

Tensor Backend::empty(DType dtype, Shape shape) const {
  if (!cuda_) return {dtype, std::move(shape)};
  const int64_t size = checked_mul(checked_count(shape, "tensor shape"), size_of(dtype), "tensor size");
  return Tensor::in_device_memory(device_, dtype, std::move(shape), cuda_->allocate(size));
}

Tensor Backend::to_device(const Tensor& x) const {
  if (!x || x.device() == device_) return x;
  Tensor result = empty(x.dtype(), x.shape());
  upload(result.data(), x.data(), x.size_bytes());
  return result;
}

Tensor Backend::to_host(const Tensor& x) const {
  if (!x || !x.device().is_cuda()) return x;
  Tensor result(x.dtype(), x.shape());
  download(result.data(), x.data(), x.size_bytes());
  return result;
}

void Backend::upload(void* to, const void* from, int64_t size_bytes) const {
  if (cuda_)
    cuda_->upload(to, from, size_bytes, pool_.get());
  else
    std::memcpy(to, from, static_cast<size_t>(size_bytes));
}

void Backend::download(void* to, const void* from, int64_t size_bytes) const {
  if (cuda_)
    cuda_->download(to, from, size_bytes);
  else
    std::memcpy(to, from, static_cast<size_t>(size_bytes));
}

void Backend::copy_rows(void* to, int64_t to_stride, const void* from, int64_t from_stride, int64_t row_bytes,
                        int64_t rows) const {
  if (cuda_) return cuda_->copy_rows(to, to_stride, from, from_stride, row_bytes, rows);
  for (int64_t row = 0; row < rows; ++row)
    std::memcpy(static_cast<std::byte*>(to) + row * to_stride, static_cast<const std::byte*>(from) + row * from_stride,
                static_cast<size_t>(row_bytes));
}

void Backend::copy(void* to, const void* from, int64_t size_bytes) const {
  if (cuda_)
    cuda_->copy(to, from, size_bytes);
  else
    std::memcpy(to, from, static_cast<size_t>(size_bytes));
}

void Backend::fill_zero(void* to, int64_t size_bytes) const {
  if (cuda_)
    cuda_->fill_zero(to, size_bytes);
  else
    std::memset(to, 0, static_cast<size_t>(size_bytes));
}

int64_t Backend::scratch_moves() const { return scratch_ ? scratch_->moves : 0; }

const kernels::Context& Backend::context_for(int64_t elements) const {
  if (cuda_) cuda_->activate();
  return elements >= kWorthSharing ? context_ : serial_;
}

}  // namespace nibble::ops
