// A dense row-major tensor: a value on shared storage, which may be memory of our own, a mapped file or a GPU's memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "device/device.h"
#include "nibble/types.h"

namespace nibble {

using Shape = std::vector<int64_t>;

/// "[2, 3]", for messages.
std::string to_string(const Shape& shape);

/// Bytes of main memory in tensors' own storage, now and at most since reset_tensor_peak().
struct TensorMemory {
  int64_t allocated_bytes, peak_bytes;
};
TensorMemory tensor_memory();
void reset_tensor_peak();

/// Copying a Tensor shares its storage. Always contiguous. Thread-safe to read.
class Tensor {
 public:
  Tensor() = default;
  /// Uninitialized storage of its own, 64-byte aligned. Errors: out_of_memory, invalid_argument (overflowing shape).
  Tensor(DType dtype, Shape shape);
  /// A view of memory that `owner` keeps alive, such as a mapped file. Read-only by convention: the caller must not
  /// write through data() of a mapped tensor.
  static Tensor view(DType dtype, Shape shape, const void* data, std::shared_ptr<const void> owner);

  /// Memory of `device` (ops::Backend::empty allocates it). What is not main memory is for kernels and copies alone.
  static Tensor in_device_memory(device::Device device, DType dtype, Shape shape, std::shared_ptr<void> storage);

  explicit operator bool() const { return data_ != nullptr; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int64_t dim(size_t axis) const { return shape_[axis]; }
  int64_t count() const { return count_; }
  int64_t size_bytes() const { return count_ * size_of(dtype_); }
  bool is_mapped() const { return is_mapped_; }
  device::Device device() const { return device_; }

  const void* data() const { return data_; }
  void* data() { return data_; }
  std::span<const std::byte> bytes() const {
    return {static_cast<const std::byte*>(data_), static_cast<size_t>(size_bytes())};
  }

  /// Typed access; the caller has checked dtype().
  template <typename T>
  const T* as() const {
    return static_cast<const T*>(data_);
  }
  template <typename T>
  T* as() {
    return static_cast<T*>(data_);
  }

  /// The same elements under another shape. Errors: invalid_argument if the count differs.
  Tensor reshaped(Shape shape) const;
  /// `count` rows from `first` on, sharing the storage; the caller has checked that they are there.
  Tensor rows(int64_t first, int64_t count) const;
  /// Converted elements (float types among each other); itself if the type is the same. In main memory only.
  Tensor to(DType dtype) const;
  /// Rows and columns swapped; 2-D only. A copy. In main memory only.
  Tensor transposed() const;

 private:
  DType dtype_ = DType::f32;
  Shape shape_;
  int64_t count_ = 0;
  void* data_ = nullptr;
  bool is_mapped_ = false;
  device::Device device_;
  std::shared_ptr<const void> owner_;
};

}  // namespace nibble
