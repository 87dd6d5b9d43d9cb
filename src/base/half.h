// bfloat16 and float16 as bits: conversions with round-to-nearest-even, NaN kept quiet.
#pragma once

#include <bit>
#include <cstdint>

namespace nibble {

/// Storage types; arithmetic happens in float.
struct bf16_t {
  uint16_t bits;
};
struct f16_t {
  uint16_t bits;
};

// Forced inline: files compiled for one instruction set must not leave a shared copy behind for the linker to pick.
#define NIBBLE_INLINE [[gnu::always_inline]] inline

NIBBLE_INLINE float to_float(float value) { return value; }
NIBBLE_INLINE float to_float(bf16_t value) { return std::bit_cast<float>(uint32_t{value.bits} << 16); }

NIBBLE_INLINE float to_float(f16_t value) {
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  const uint32_t exponent = (value.bits >> 10) & 31u;
  const uint32_t mantissa = value.bits & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0) {  // zero or denormal: mantissa * 2^-24 is exact in float
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

NIBBLE_INLINE bf16_t to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

NIBBLE_INLINE f16_t to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu))};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds past 65504
  if (magnitude < 0x38800000u) {                                                 // denormal or zero
    const float scaled = std::bit_cast<float>(magnitude) + 0x1p-1f;  // ulp of 0.5 is 2^-24: adding rounds to even
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(scaled) - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

template <typename T>
NIBBLE_INLINE T from_float(float value) {
  if constexpr (sizeof(T) == 4)
    return value;
  else if constexpr (requires(T t) { to_bf16(value) = t; })
    return to_bf16(value);
  else
    return to_f16(value);
}

}  // namespace nibble
