// The order in which sums of squares are taken, so that every backend can give the same bits.
#pragma once

#include <array>

#include "kernels/reference/element.h"

namespace nibble::kernels::reference {

/// Sixteen partial sums in double; element i of a chunk goes to partial i mod 16.
class SquareSum {
 public:
  void add(int64_t i, float x) { partials_[static_cast<size_t>(i % 16)] += double{x} * double{x}; }
  double total() const {
    double sum = 0;
    for (const double partial : partials_) sum += partial;
    return sum;
  }

 private:
  std::array<double, 16> partials_{};
};

}  // namespace nibble::kernels::reference
