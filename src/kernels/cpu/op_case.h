// Tests of kernel entries as tables: a case names its inputs and tolerance, the runner compares every instruction set
// with the reference on 1, 2 and 3 threads, misaligned and with poison around each output.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/half.h"
#include "base/random.h"
#include "kernels/cpu/table.h"
#include "kernels/reference/table.h"

namespace nibble::kernels::cpu::testing {

enum class Placement : uint8_t { misaligned, aligned };

/// Elements between guards of poison: an odd number of them from an allocation's start, or on a cache line.
class Buffer {
 public:
  Buffer() = default;
  Buffer(DType dtype, int64_t count, Placement placement = Placement::misaligned)
      : dtype_(dtype),
        count_(count),
        placement_(placement),
        bytes_(static_cast<size_t>((count + 2 * kGuard) * size_of(dtype) + 64), kPoison) {}

  DType dtype() const { return dtype_; }
  int64_t count() const { return count_; }
  void* data() { return bytes_.data() + offset(); }
  const void* data() const { return bytes_.data() + offset(); }
  template <typename T>
  T* as() {
    return static_cast<T*>(data());
  }
  template <typename T>
  const T* as() const {
    return static_cast<const T*>(data());
  }

  void set(int64_t i, float value);
  float get(int64_t i) const;
  bool same_bits(const Buffer& other) const {
    return std::memcmp(data(), other.data(), static_cast<size_t>(count_ * size_of(dtype_))) == 0;
  }
  bool guards_are_whole() const;

 private:
  static constexpr int64_t kGuard = 17;
  static constexpr uint8_t kPoison = 0xa5;
  int64_t offset() const;

  DType dtype_ = DType::f32;
  int64_t count_ = 0;
  Placement placement_ = Placement::misaligned;
  std::vector<uint8_t> bytes_;
};

/// Normal deviates times `scale`.
Buffer random_buffer(Random& random, DType dtype, int64_t count, float scale = 1);

/// What one run of an entry wrote.
using Outputs = std::vector<Buffer>;

/// One call of one entry with its inputs bound.
struct OpCase {
  std::string name;                                            // with shape and dtype, for messages
  std::function<Outputs(const Kernels&, const Context&)> run;  // calls the entry on fresh outputs
  double tolerance = 0;                                        // 0: same bits; else relative to max(1, |expected|)
};

/// Compares every supported instruction set with the reference, and its bits over thread counts.
void check(const OpCase& op);

inline constexpr DType kFloatTypes[] = {DType::f32, DType::bf16, DType::f16};

}  // namespace nibble::kernels::cpu::testing
