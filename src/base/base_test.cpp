// Conversions, checked sizes, JSON and random numbers.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <vector>

#include "base/checked.h"
#include "base/half.h"
#include "base/json.h"
#include "base/output.h"
#include "base/random.h"

namespace nibble {
namespace {

uint16_t rounded_by_compiler(float value) {
#ifdef __FLT16_MAX__
  return std::bit_cast<uint16_t>(static_cast<_Float16>(value));
#else  // clang 14 has no _Float16 on x86: only g++ builds compare
  return to_f16(value).bits;
#endif
}

TEST(Half, EveryF16RoundTrips) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const f16_t value{static_cast<uint16_t>(bits)};
    const float wide = to_float(value);
    if (std::isnan(wide)) continue;
    EXPECT_EQ(to_f16(wide).bits, bits);
    EXPECT_EQ(rounded_by_compiler(wide), bits);
  }
}

TEST(Half, RoundsToNearestEven) {
  Random random(1);
  for (int i = 0; i < 200000; ++i) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(random.next()));
    if (std::isnan(value)) continue;
    EXPECT_EQ(to_f16(value).bits, rounded_by_compiler(value)) << value;
    const float back = to_float(to_bf16(value));
    if (std::isinf(back)) continue;
    const float up = to_float(bf16_t{static_cast<uint16_t>(to_bf16(value).bits + 1)});
    const float down = to_float(bf16_t{static_cast<uint16_t>(to_bf16(value).bits - 1)});
    const auto error = [&](float candidate) { return std::fabs(double(candidate) - value); };
    if (std::isfinite(up)) {
      EXPECT_LE(error(back), error(up));
    }
    if (std::isfinite(down) && back != 0) {
      EXPECT_LE(error(back), error(down));
    }
  }
}

TEST(Checked, OverflowThrows) {
  EXPECT_THROW(checked_mul(int64_t{1} << 40, int64_t{1} << 40, "size"), Error);
  EXPECT_THROW(checked_count(std::vector<int64_t>{3, -1}, "shape"), Error);
  EXPECT_EQ(checked_count(std::vector<int64_t>{3, 4}, "shape"), 12);
}

TEST(Json, NamesSourceAndKey) {
  EXPECT_THROW(parse_json("{", "config.json"), Error);
  EXPECT_THROW(parse_json(std::string(1000, '['), "deep"), Error);
  const Json object = parse_json(R"({"a": 1, "b": "x"})", "test");
  EXPECT_EQ(get_value<int64_t>(object, "a", "test"), 1);
  EXPECT_THROW(get_value<int64_t>(object, "b", "test"), Error);
  EXPECT_FALSE(find_value<int64_t>(object, "c", "test"));
  EXPECT_EQ(dump_json(object), R"({"a": 1, "b": "x"})");
  EXPECT_EQ(dump_json(parse_json(R"({"b": 1, "a": [], "b": {"c": 2}, "d": null})", "test")),
            R"({"b": {"c": 2}, "a": [], "d": null})");
  EXPECT_EQ(parse_json("-1.5", "test"), -1.5);
  EXPECT_THROW(parse_json("", "test"), Error);
  EXPECT_THROW(parse_json("1e999", "test"), Error);
  EXPECT_THROW(parse_json("{} x", "test"), Error);
  EXPECT_THROW(parse_json("\"\xff\"", "test"), Error);
}

TEST(Json, ManyKeysTakeLinearTime) {
  std::string text = "{";
  for (int i = 0; i < 200'000; ++i) text += fmt::format("{}\"key{}\": {}", i ? ", " : "", i, i);
  EXPECT_EQ(parse_json(text + "}", "test").size(), 200'000u);  // a quadratic parser needs minutes
}

}  // namespace
}  // namespace nibble
