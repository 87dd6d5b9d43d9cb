// Reading goldens and comparing with them.
#include "golden.h"

#include <bit>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "base/half.h"

namespace nibble::parity {
Golden::Golden(std::string_view path) : checkpoint_(Checkpoint::open(std::string(NIBBLE_TEST_DATA "/").append(path))) {}

std::vector<std::string> Golden::cases(std::string_view suffix) const {
  std::vector<std::string> result;
  for (const TensorInfo& info : checkpoint_->tensors())
    if (info.name.ends_with(suffix)) result.push_back(info.name.substr(0, info.name.size() - suffix.size()));
  return result;
}

std::string field(std::string_view text, size_t index) {
  for (; index > 0; --index) text.remove_prefix(std::min(text.size(), text.find('.') + 1));
  return std::string(text.substr(0, text.find('.')));
}

DType dtype_named(std::string_view name) {
  return name == "f32" ? DType::f32 : name == "bf16" ? DType::bf16 : DType::f16;
}

float at(const Tensor& tensor, int64_t i) {
  switch (tensor.dtype()) {
    case DType::f32:
      return tensor.as<float>()[i];
    case DType::bf16:
      return to_float(tensor.as<bf16_t>()[i]);
    case DType::f16:
      return to_float(tensor.as<f16_t>()[i]);
    case DType::i8:
      return tensor.as<int8_t>()[i];
    default:
      return tensor.as<uint8_t>()[i];
  }
}

int64_t differences(const Tensor& a, const Tensor& b) {
  if (a.dtype() != b.dtype() || a.count() != b.count()) return std::max(a.count(), b.count());
  int64_t count = 0;
  for (int64_t i = 0; i < a.count(); ++i) {
    const float x = at(a, i);
    const float y = at(b, i);
    if (std::isnan(x) && std::isnan(y)) continue;
    if (std::bit_cast<uint32_t>(x) != std::bit_cast<uint32_t>(y)) ++count;
  }
  return count;
}

int64_t ulps_between(float a, float b) {
  if (a == b) return 0;
  if (std::isnan(a) || std::isnan(b) || std::signbit(a) != std::signbit(b)) return std::numeric_limits<int64_t>::max();
  return std::abs(int64_t{std::bit_cast<int32_t>(a)} - int64_t{std::bit_cast<int32_t>(b)});
}

}  // namespace nibble::parity
