// Buckets of distances, and tables of biases for the attention kernels.
#include "nn/relative_bias.h"

#include <algorithm>
#include <cmath>

namespace nibble::nn {

int64_t relative_bucket(int64_t distance, int64_t buckets, int64_t max_distance, bool is_bidirectional) {
  int64_t first = 0;
  if (is_bidirectional) {
    buckets /= 2;
    first = distance > 0 ? buckets : 0;
    distance = std::abs(distance);
  } else {
    distance = std::max<int64_t>(-distance, 0);
  }
  const int64_t exact = buckets / 2;
  if (distance < exact) return first + distance;
  // The model was trained on these roundings: fp32 but for the constant.
  const auto range = static_cast<float>(std::log(static_cast<double>(max_distance) / static_cast<double>(exact)));
  const float octaves = std::log(static_cast<float>(distance) / static_cast<float>(exact)) / range;
  const auto steps = static_cast<int64_t>(octaves * static_cast<float>(buckets - exact));
  return first + std::min(exact + steps, buckets - 1);
}

RelativeBias::RelativeBias(const Tensor& weight, int64_t max_distance, bool is_bidirectional)
    : weight_(weight.to(DType::f32)), max_distance_(max_distance), is_bidirectional_(is_bidirectional) {}

void RelativeBias::fill(int64_t span, float* out) const {
  const int64_t width = 2 * span - 1;
  for (int64_t i = 0; i < width; ++i) {
    const int64_t bucket = relative_bucket(i - (span - 1), weight_.dim(0), max_distance_, is_bidirectional_);
    for (int64_t head = 0; head < heads(); ++head) out[head * width + i] = weight_.as<float>()[bucket * heads() + head];
  }
}

void RelativeBias::add_gradient(int64_t span, const float* dout, float* dweight) const {
  const int64_t width = 2 * span - 1;
  for (int64_t i = 0; i < width; ++i) {
    const int64_t bucket = relative_bucket(i - (span - 1), weight_.dim(0), max_distance_, is_bidirectional_);
    for (int64_t head = 0; head < heads(); ++head) dweight[bucket * heads() + head] += dout[head * width + i];
  }
}

}  // namespace nibble::nn
