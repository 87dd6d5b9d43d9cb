// What the tests of gradients share: arrays in the type under test beside the reference's fp32, and how they compare.
#pragma once

#include "kernels/cuda/device_case.h"

namespace nibble::kernels::cuda::testing {

inline constexpr DType kTypes[] = {DType::f32, DType::bf16};

/// Of a result in `dtype`.
inline double tolerance_of(DType dtype, double exact) { return dtype == DType::bf16 ? 1.2e-2 : exact; }

inline std::string label(const char* entry, DType dtype, int64_t a, int64_t b, int64_t c = 0) {
  return std::string(entry) + " " + std::string(name_of(dtype)) + " (" + std::to_string(a) + ", " + std::to_string(b) +
         ", " + std::to_string(c) + ")";
}

inline Array copy_of(const Array& from, DType dtype, int64_t offset) {
  Array to(dtype, from.count(), offset);
  for (int64_t i = 0; i < from.count(); ++i) to.set(i, from.get(i));
  return to;
}

class GradientTest : public GpuTest {
 protected:
  /// An array's sides: the device's in the type under test, the reference's in fp32.
  struct Sides {
    Array device, host;
    Sides(const Array& values, int64_t offset = 0) : device(copy_of(values, values.dtype(), offset)) {
      host = copy_of(values, DType::f32, 0);
    }
    Sides(DType dtype, int64_t count) : device(dtype, count, 0), host(DType::f32, count, 0) {}
  };
  float* send(Sides& sides) {
    sides.device.upload(stream());
    return sides.device.device<float>(stream());
  }
  static float* f(Sides& sides) { return sides.host.host<float>(); }
  void compare(Sides& sides, double tolerance, const std::string& what) {
    finish(what);
    sides.device.download(stream(), what);
    expect_close(sides.host, sides.device, tolerance, what);
  }

  /// For sums of bf16 products, whose elements may cancel: the error of the whole against the size of the whole.
  void compare_whole(Sides& sides, double tolerance, const std::string& what) {
    finish(what);
    sides.device.download(stream(), what);
    double error = 0, size = 0;
    for (int64_t i = 0; i < sides.host.count(); ++i) {
      const double expected = static_cast<double>(sides.host.get(i)), found = static_cast<double>(sides.device.get(i));
      error += (found - expected) * (found - expected);
      size += expected * expected;
    }
    const double least = 1e-4 * static_cast<double>(sides.host.count());  // elements of 0.01
    EXPECT_LT(std::sqrt(error), tolerance * std::sqrt(size + least)) << what;
  }
};

}  // namespace nibble::kernels::cuda::testing
