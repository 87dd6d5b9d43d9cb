// Storage, views and conversions of Tensor.
#include "tensor/tensor.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "base/checked.h"
#include "base/half.h"

namespace nibble {
namespace {

template <typename From, typename To>
void convert(const void* from, void* to, int64_t count) {
  const auto* source = static_cast<const From*>(from);
  auto* target = static_cast<To*>(to);
  for (int64_t i = 0; i < count; ++i) target[i] = from_float<To>(to_float(source[i]));
}

template <typename From>
bool convert_from(const void* from, void* to, DType dtype, int64_t count) {
  switch (dtype) {
    case DType::f32:
      convert<From, float>(from, to, count);
      return true;
    case DType::bf16:
      convert<From, bf16_t>(from, to, count);
      return true;
    case DType::f16:
      convert<From, f16_t>(from, to, count);
      return true;
    default:
      return false;
  }
}

void require_main_memory(device::Device device) {
  if (device.is_cuda()) fail(ErrorCode::internal, "a tensor on {} was read by the CPU", device::to_string(device));
}

std::atomic<int64_t> allocated{0}, peak{0};

void count_storage(int64_t bytes) {
  const int64_t now = allocated.fetch_add(bytes, std::memory_order_relaxed) + bytes;
  int64_t before = peak.load(std::memory_order_relaxed);
  while (now > before && !peak.compare_exchange_weak(before, now, std::memory_order_relaxed)) {
  }
}

}  // namespace

TensorMemory tensor_memory() { return {allocated.load(), peak.load()}; }
void reset_tensor_peak() { peak = allocated.load(); }

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

Tensor::Tensor(DType dtype, Shape shape) : dtype_(dtype), shape_(std::move(shape)) {
  count_ = checked_count(shape_, "tensor shape");
  const int64_t size = checked_mul(count_, size_of(dtype), "tensor size");
  const size_t padded = (static_cast<size_t>(std::max<int64_t>(size, 1)) + 63) / 64 * 64;
  data_ = std::aligned_alloc(64, padded);
  if (!data_) fail(ErrorCode::out_of_memory, "out of memory: a tensor of {} bytes", size);
  count_storage(static_cast<int64_t>(padded));
  owner_ = std::shared_ptr<void>(data_, [padded](void* pointer) {
    count_storage(-static_cast<int64_t>(padded));
    std::free(pointer);
  });
}

Tensor Tensor::view(DType dtype, Shape shape, const void* data, std::shared_ptr<const void> owner) {
  Tensor tensor;
  tensor.dtype_ = dtype;
  tensor.shape_ = std::move(shape);
  tensor.count_ = checked_count(tensor.shape_, "tensor shape");
  tensor.data_ = const_cast<void*>(data);
  tensor.is_mapped_ = true;
  tensor.owner_ = std::move(owner);
  return tensor;
}

Tensor Tensor::in_device_memory(device::Device device, DType dtype, Shape shape, std::shared_ptr<void> storage) {
  Tensor tensor = view(dtype, std::move(shape), storage.get(), storage);
  tensor.is_mapped_ = false;
  tensor.device_ = device;
  return tensor;
}

Tensor Tensor::reshaped(Shape shape) const {
  if (checked_count(shape, "tensor shape") != count_)
    fail(ErrorCode::invalid_argument, "cannot view shape {} as {}", to_string(shape_), to_string(shape));
  Tensor result = *this;
  result.shape_ = std::move(shape);
  return result;
}

Tensor Tensor::rows(int64_t first, int64_t count) const {
  Tensor result = *this;
  const int64_t row = shape_[0] > 0 ? count_ / shape_[0] : 0;
  result.shape_[0] = count;
  result.count_ = count * row;
  result.data_ = static_cast<std::byte*>(data_) + first * row * size_of(dtype_);
  return result;
}

Tensor Tensor::to(DType dtype) const {
  if (dtype == dtype_) return *this;
  require_main_memory(device_);
  Tensor result(dtype, shape_);
  bool converted = false;
  switch (dtype_) {
    case DType::f32:
      converted = convert_from<float>(data_, result.data_, dtype, count_);
      break;
    case DType::bf16:
      converted = convert_from<bf16_t>(data_, result.data_, dtype, count_);
      break;
    case DType::f16:
      converted = convert_from<f16_t>(data_, result.data_, dtype, count_);
      break;
    default:
      break;
  }
  if (!converted) fail(ErrorCode::unsupported, "cannot convert {} to {}", name_of(dtype_), name_of(dtype));
  return result;
}

Tensor Tensor::transposed() const {
  require_main_memory(device_);
  require(shape_.size() == 2, "cannot transpose shape {}: expected 2 dimensions", to_string(shape_));
  const int64_t rows = shape_[0], cols = shape_[1], size = size_of(dtype_);
  Tensor result(dtype_, {cols, rows});
  const auto* from = as<std::byte>();
  auto* to = result.as<std::byte>();
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      std::memcpy(to + (c * rows + r) * size, from + (r * cols + c) * size, static_cast<size_t>(size));
  return result;
}

}  // namespace nibble
