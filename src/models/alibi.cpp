// The slopes, each a power in double rounded once.
#include "models/alibi.h"

#include <bit>
#include <cmath>

#include "base/half.h"

namespace nibble::models {

std::vector<float> alibi_slopes(int64_t heads, DType dtype) {
  const auto whole = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(heads)));
  std::vector<float> slopes;
  for (int64_t i = 1; i <= heads; ++i) {
    const int64_t count = i <= whole ? whole : 2 * whole;
    const int64_t power = i <= whole ? i : 2 * (i - whole) - 1;
    const auto slope = static_cast<float>(std::exp2(-8.0 * static_cast<double>(power) / static_cast<double>(count)));
    slopes.push_back(dtype == DType::bf16 ? to_float(to_bf16(slope)) : slope);
  }
  return slopes;
}

}  // namespace nibble::models
