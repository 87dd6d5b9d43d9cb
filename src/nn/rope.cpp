// Inverse frequencies in fp32, in the order of operations that transformers uses, so that angles agree to the bit.
#include "nn/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace nibble::nn {
namespace {

/// theta^(2i / dim) for i in 0 .. dim / 2.
std::vector<float> powers(double theta, int64_t dim) {
  std::vector<float> result(static_cast<size_t>(dim / 2));
  for (size_t i = 0; i < result.size(); ++i)
    result[i] = std::pow(static_cast<float>(theta), static_cast<float>(2 * i) / static_cast<float>(dim));
  return result;
}

std::vector<float> inverse(std::vector<float> values) {
  for (float& value : values) value = 1.0f / value;
  return values;
}

/// Llama 3.1: long wavelengths are stretched, short ones kept, those between blended.
std::vector<float> llama3(const RopeSpec& spec, std::vector<float> frequencies) {
  const auto factor = static_cast<float>(spec.factor);
  const auto old_length = static_cast<double>(spec.original_max_position_embeddings);
  const auto longest = static_cast<float>(old_length / spec.low_freq_factor);
  const auto shortest = static_cast<float>(old_length / spec.high_freq_factor);
  for (float& frequency : frequencies) {
    const float wavelength = static_cast<float>(2 * std::numbers::pi) / frequency;
    if (wavelength > longest) {
      frequency = frequency / factor;
    } else if (wavelength >= shortest) {
      const float smooth = (static_cast<float>(old_length) / wavelength - static_cast<float>(spec.low_freq_factor)) /
                           static_cast<float>(spec.high_freq_factor - spec.low_freq_factor);
      frequency = (1.0f - smooth) * frequency / factor + smooth * frequency;
    }
  }
  return frequencies;
}

/// YaRN (Peng et al., 2023): a ramp over dimensions from extrapolation to interpolation.
std::vector<float> yarn(const RopeSpec& spec) {
  const auto dim = static_cast<double>(spec.rotary_dim);
  const auto correction = [&](double rotations) {
    const double ratio =
        static_cast<double>(spec.original_max_position_embeddings) / (rotations * 2 * std::numbers::pi);
    return dim * std::log(ratio) / (2 * std::log(spec.theta));
  };
  double low = correction(spec.beta_fast), high = correction(spec.beta_slow);
  if (spec.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1);
  if (low == high) high += 0.001;
  std::vector<float> frequencies = powers(spec.theta, spec.rotary_dim);
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const float ramp = (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low);
    const float extrapolated_share = 1.0f - std::clamp(ramp, 0.0f, 1.0f);
    const float interpolated = 1.0f / (static_cast<float>(spec.factor) * frequencies[i]);
    frequencies[i] = interpolated * (1.0f - extrapolated_share) + 1.0f / frequencies[i] * extrapolated_share;
  }
  return frequencies;
}

std::vector<float> longrope(const RopeSpec& spec, const std::vector<double>& factors) {
  std::vector<float> frequencies = powers(spec.theta, spec.rotary_dim);
  for (size_t i = 0; i < frequencies.size(); ++i)
    frequencies[i] = 1.0f / (static_cast<float>(factors[i]) * frequencies[i]);
  return frequencies;
}

/// The base grows with the length once that exceeds the trained one.
std::vector<float> dynamic(const RopeSpec& spec, int64_t length) {
  const auto trained = static_cast<double>(spec.max_position_embeddings);
  const double reached = std::max(static_cast<double>(length), trained);
  const auto dim = static_cast<double>(spec.rotary_dim);
  const double stretch = spec.factor * reached / trained - (spec.factor - 1);
  return inverse(powers(spec.theta * std::pow(stretch, dim / (dim - 2)), spec.rotary_dim));
}

}  // namespace

Rope::Rope(RopeSpec spec) : spec_(std::move(spec)), frequencies_(frequencies(0)) {}

std::vector<float> Rope::frequencies(int64_t length) const {
  switch (spec_.kind) {
    case RopeKind::plain:
      return inverse(powers(spec_.theta, spec_.rotary_dim));
    case RopeKind::linear: {
      std::vector<float> result = inverse(powers(spec_.theta, spec_.rotary_dim));
      for (float& frequency : result) frequency /= static_cast<float>(spec_.factor);
      return result;
    }
    case RopeKind::dynamic:
      return dynamic(spec_, length);
    case RopeKind::llama3:
      return llama3(spec_, inverse(powers(spec_.theta, spec_.rotary_dim)));
    case RopeKind::yarn:
      return yarn(spec_);
    case RopeKind::longrope:
      return longrope(spec_, length > spec_.original_max_position_embeddings ? spec_.long_factor : spec_.short_factor);
  }
  return {};
}

void Rope::fill(int64_t first, int64_t tokens, int64_t length, float* cos, float* sin) const {
  const bool is_stretched = (spec_.kind == RopeKind::dynamic && length > spec_.max_position_embeddings) ||
                            (spec_.kind == RopeKind::longrope && length > spec_.original_max_position_embeddings);
  const std::vector<float> own = is_stretched ? frequencies(length) : std::vector<float>{};
  const std::vector<float>& used = is_stretched ? own : frequencies_;
  const auto scale = static_cast<float>(spec_.attention_factor);
  for (int64_t t = 0; t < tokens; ++t) {
    for (const float frequency : used) {
      const float angle = static_cast<float>(first + t) * frequency;
      *cos++ = std::cos(angle) * scale;
      *sin++ = std::sin(angle) * scale;
    }
  }
}

}  // namespace nibble::nn
