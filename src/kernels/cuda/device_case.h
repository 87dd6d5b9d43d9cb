// What the tests of GPU kernels share: buffers in device memory between guards of poison, and the GPU to run on.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/half.h"
#include "base/random.h"
#include "base/thread_pool.h"
#include "device/cuda.h"
#include "kernels/cuda/table.h"
#include "kernels/reference/table.h"

namespace nibble::kernels::cuda::testing {

inline constexpr DType kFloatTypes[] = {DType::f32, DType::bf16, DType::f16};

/// An array that has a side in main memory and one in device memory. The device side starts as poison.
class Array {
 public:
  Array() = default;
  /// `offset` elements past an aligned address: 0 is aligned to 256 bytes, 1 to the element alone.
  Array(DType dtype, int64_t count, int64_t offset = 1)
      : dtype_(dtype), count_(count), offset_(offset), host_(static_cast<size_t>(count * size_of(dtype)), kPoison) {}

  DType dtype() const { return dtype_; }
  int64_t count() const { return count_; }
  template <typename T>
  T* host() {
    return reinterpret_cast<T*>(host_.data());
  }
  void* host() { return host_.data(); }
  void set(int64_t i, float value);
  float get(int64_t i) const;

  /// Copies the main-memory side to the device.
  void upload(device::CudaStream& stream);
  /// The device side; allocated as poison at first use.
  void* device(device::CudaStream& stream);
  template <typename T>
  T* device(device::CudaStream& stream) {
    return static_cast<T*>(device(stream));
  }
  /// Copies the device side back; fails the test if a guard was written.
  void download(device::CudaStream& stream, const std::string& label);

 private:
  static constexpr int64_t kGuard = 256;
  static constexpr uint8_t kPoison = 0xa5;
  int64_t begin() const { return kGuard + offset_ * size_of(dtype_); }
  int64_t whole() const { return begin() + count_ * size_of(dtype_) + kGuard; }

  DType dtype_ = DType::f32;
  int64_t count_ = 0, offset_ = 1;
  std::vector<uint8_t> host_;
  std::shared_ptr<void> device_;
};

/// Threads for what the host has to compute.
ThreadPool& host_threads();

/// Normal deviates times `scale`.
Array random_array(Random& random, DType dtype, int64_t count, float scale = 1, int64_t offset = 1);

/// tolerance 0: same bits (NaN equals NaN); else relative to max(1, |expected|).
void expect_close(const Array& expected, const Array& found, double tolerance, const std::string& label);

/// At least 1.
double largest(const Array& array);

/// Every element within `tolerance` and `relative` times its size.
void expect_within(const Array& expected, const Array& found, double tolerance, double relative,
                   const std::string& label);

/// Skips without a GPU; otherwise a stream and the context to call entries with.
class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;
  /// Waits for the kernels; fails the test if one did.
  void finish(const std::string& label);

  device::CudaStream& stream() { return *stream_; }
  const Kernels& cuda() { return *table(); }
  const Kernels& reference() { return kernels::reference::table(); }
  Context context;  // of GPU entries
  Context cpu;      // of the reference

 private:
  class TestScratch;
  std::shared_ptr<device::CudaStream> stream_;
  std::shared_ptr<void> counters_;
  std::unique_ptr<Scratch> scratch_;
};

}  // namespace nibble::kernels::cuda::testing
