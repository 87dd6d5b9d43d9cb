// Double quantization: offset, then 8-bit codes of what is left.
#include "quant/double_quant.h"

#include <algorithm>
#include <cmath>

#include "quant/encode.h"

namespace nibble::quant {

float mean_offset(std::span<const float> absmax) {
  if (absmax.empty()) return 0;
  double sum = 0;
  for (const float value : absmax) sum += value;
  const float inverse_count = static_cast<float>(1.0 / static_cast<double>(absmax.size()));
  return static_cast<float>(sum) * inverse_count;
}

NestedAbsmax compress_absmax(std::span<const float> absmax) { return compress_absmax(absmax, mean_offset(absmax)); }

NestedAbsmax compress_absmax(std::span<const float> absmax, float offset) {
  NestedAbsmax nested;
  nested.offset = offset;
  nested.codes.resize(absmax.size());
  constexpr size_t kBlock = kNestedBlock;
  for (size_t begin = 0; begin < absmax.size(); begin += kBlock) {
    const size_t end = std::min(begin + kBlock, absmax.size());
    float maximum = 0;
    for (size_t i = begin; i < end; ++i) maximum = std::fmax(maximum, std::fabs(absmax[i] - nested.offset));
    maximum = flush_denormal(maximum);
    nested.absmax.push_back(maximum);
    const float inverse = inverse_of(maximum);
    for (size_t i = begin; i < end; ++i)
      nested.codes[i] = encode_8bit(kDynamicSigned.data(), (absmax[i] - nested.offset) * inverse);
  }
  return nested;
}

void expand_absmax(std::span<const uint8_t> codes, std::span<const float> nested_absmax, const float* nested_code_book,
                   float offset, std::span<float> out) {
  for (size_t i = 0; i < codes.size(); ++i) {
    const float difference = nested_code_book[codes[i]] * nested_absmax[i / size_t{kNestedBlock}];
    out[i] = difference + offset;
  }
}

}  // namespace nibble::quant
