// Tables, encoding rules, double quantization and size arithmetic.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "base/random.h"
#include "quant/double_quant.h"
#include "quant/encode.h"
#include "quant/int8_vectorwise.h"

namespace nibble::quant {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

float after(float x) { return std::nextafter(x, kInf); }
float before(float x) { return std::nextafter(x, -kInf); }

TEST(Formats, AreFoundByName) {
  for (const Format& format : formats()) EXPECT_EQ(find_format(format.name), &format);
  EXPECT_EQ(find_format("nf4")->code_book_4bit, &kNf4);
  EXPECT_EQ(find_format("dynamic8_unsigned")->code_book_8bit, kDynamicUnsigned.data());
  EXPECT_EQ(find_format("nf5"), nullptr);
}

TEST(Formats, BlockSizesArePowersOfTwoFrom32To4096) {
  for (int64_t block = -1; block <= 8192; ++block)
    EXPECT_EQ(is_valid_block_size(block),
              block >= 32 && block <= 4096 && std::has_single_bit(static_cast<uint64_t>(block)))
        << block;
}

TEST(Formats, SizesBeyond32Bits) {
  const int64_t count = (int64_t{1} << 33) + 1;
  EXPECT_EQ(packed_size_bytes(count), (int64_t{1} << 32) + 1);
  EXPECT_EQ(block_count(count, 64), (int64_t{1} << 27) + 1);
  EXPECT_EQ(packed_size_bytes(0), 0);
  EXPECT_EQ(block_count(0, 64), 0);
}

TEST(CodeBook4Bit, EveryValueEncodesToItself) {
  for (const CodeBook4Bit* book : {&kNf4, &kFp4})
    for (uint8_t code = 0; code < 16; ++code) {
      const float value = book->values[code];
      EXPECT_EQ(book->values[encode_4bit(*book, value)], value) << int{code};
    }
}

TEST(CodeBook4Bit, ThresholdsAscend) {
  for (const CodeBook4Bit* book : {&kNf4, &kFp4})
    for (size_t i = 0; i + 1 < 15; ++i) EXPECT_LT(book->thresholds[i], book->thresholds[i + 1]);
}

TEST(Nf4, TiesFallToTheLowerCode) {
  for (uint8_t i = 0; i < 15; ++i) {
    const float tie = kNf4.thresholds[i];
    EXPECT_EQ(encode_4bit(kNf4, tie), i);
    EXPECT_EQ(encode_4bit(kNf4, after(tie)), i + 1);
    EXPECT_EQ(encode_4bit(kNf4, before(tie)), i);
  }
}

TEST(Nf4, SpecialValues) {
  EXPECT_EQ(encode_4bit(kNf4, kNan), 0);
  EXPECT_EQ(encode_4bit(kNf4, kInf), 15);
  EXPECT_EQ(encode_4bit(kNf4, -kInf), 0);
  EXPECT_EQ(encode_4bit(kNf4, 0.0f), 7);
  EXPECT_EQ(encode_4bit(kNf4, -0.0f), 7);
}

TEST(Fp4, TiesFallToTheSmallerMagnitudeOnBothSides) {
  const struct {
    float boundary;
    uint8_t below, above;
  } rows[] = {{0.00260417f, 0, 1}, {0.0859375f, 1, 6}, {0.20833333f, 6, 7}, {0.29166667f, 7, 4},
              {0.4166667f, 4, 5},  {0.583333f, 5, 2},  {0.8333333f, 2, 3}};
  for (const auto& row : rows) {
    EXPECT_EQ(encode_4bit(kFp4, row.boundary), row.below);
    EXPECT_EQ(encode_4bit(kFp4, after(row.boundary)), row.above);
    EXPECT_EQ(encode_4bit(kFp4, -row.boundary), row.below | 8);
    EXPECT_EQ(encode_4bit(kFp4, before(-row.boundary)), row.above | 8);
  }
}

TEST(Fp4, TheSignBitIsSetOnlyBelowZero) {
  EXPECT_EQ(encode_4bit(kFp4, 0.0f), 0);
  EXPECT_EQ(encode_4bit(kFp4, -0.0f), 0);
  EXPECT_EQ(encode_4bit(kFp4, kNan), 0);
  EXPECT_EQ(encode_4bit(kFp4, -1e-6f), 8);
  EXPECT_EQ(encode_4bit(kFp4, -std::numeric_limits<float>::denorm_min()), 8);
  EXPECT_EQ(encode_4bit(kFp4, std::numeric_limits<float>::denorm_min()), 0);
  EXPECT_TRUE(std::signbit(kFp4.values[8]));
  EXPECT_FALSE(std::signbit(kFp4.quant_map[8]));  // as files hold it
}

/// Distances to all 256 values, by the definition: the midpoint decides, half way goes to the even index.
uint8_t nearest(const std::array<float, 256>& map, float y) {
  for (int i = 0; i < 255; ++i) {
    const float midpoint = (map[static_cast<size_t>(i)] + map[static_cast<size_t>(i) + 1]) * 0.5f;
    if (y < midpoint || (y == midpoint && i % 2 == 0)) return static_cast<uint8_t>(i);
  }
  return 255;
}

TEST(Dynamic8, FindsTheNearestAndTiesGoToTheEvenIndex) {
  Random random(3);
  for (const auto* map : {&kDynamicSigned, &kDynamicUnsigned}) {
    for (size_t i = 0; i < 255; ++i) {
      const float midpoint = ((*map)[i] + (*map)[i + 1]) * 0.5f;
      for (const float y : {(*map)[i], midpoint, after(midpoint), before(midpoint)})
        EXPECT_EQ(encode_8bit(map->data(), y), nearest(*map, y)) << y;
      EXPECT_EQ(encode_8bit(map->data(), midpoint) % 2, 0);
    }
    for (int i = 0; i < 20000; ++i) {
      const float y = static_cast<float>(random.normal() * std::pow(10, -7 * random.uniform()));
      EXPECT_EQ(encode_8bit(map->data(), y), nearest(*map, y)) << y;
    }
    EXPECT_EQ(encode_8bit(map->data(), kNan), 0);
    EXPECT_EQ(encode_8bit(map->data(), kInf), 255);
    EXPECT_EQ(encode_8bit(map->data(), -kInf), 0);
  }
  EXPECT_EQ(encode_8bit(kDynamicSigned.data(), 0.0f), 127);
  EXPECT_EQ(encode_8bit(kDynamicSigned.data(), -0.0f), 127);
  EXPECT_EQ(encode_8bit(kDynamicUnsigned.data(), 0.0f), 0);
}

TEST(Dynamic8, LevelsFollowTheFormula) {
  for (size_t decade = 0, signed_at = 128, unsigned_at = 1; decade < 7; ++decade) {
    const double scale = std::pow(10.0, static_cast<double>(decade) - 6);
    const auto level = [&](size_t j, size_t n) {
      return scale * (0.1 + 0.9 * (static_cast<double>(j) + 0.5) / static_cast<double>(n));
    };
    const size_t n = size_t{1} << decade;
    for (size_t j = 0; j < n; ++j, ++signed_at) EXPECT_NEAR(kDynamicSigned[signed_at] / level(j, n), 1, 3e-7);
    for (size_t j = 0; j < 2 * n; ++j, ++unsigned_at)
      EXPECT_NEAR(kDynamicUnsigned[unsigned_at] / level(j, 2 * n), 1, 3e-7);
  }
  EXPECT_EQ(kDynamicSigned[127], 0);
  EXPECT_EQ(kDynamicSigned[255], 1);
  EXPECT_EQ(kDynamicUnsigned[0], 0);
  EXPECT_EQ(kDynamicUnsigned[255], 1);
}

TEST(Int8, RoundsHalfToEvenAndStaysInRange) {
  EXPECT_EQ(encode_int8(0.5f, 1), 0);
  EXPECT_EQ(encode_int8(1.5f, 1), 2);
  EXPECT_EQ(encode_int8(-2.5f, 1), -2);
  EXPECT_EQ(encode_int8(1, 127), 127);
  EXPECT_EQ(encode_int8(-1, 127.00001f), -127);
  EXPECT_EQ(encode_int8(0, kInf), 0);  // a row of zeros: absmax 0, scale inf
  EXPECT_EQ(encode_int8(kNan, 1), 0);
  EXPECT_EQ(encode_int8(kInf, 0), 0);  // a row that holds Inf: scale 0
  EXPECT_EQ(encode_int8(-kInf, 1), -127);
}

std::vector<float> random_absmax(size_t count) {
  Random random(11);
  std::vector<float> absmax(count);
  for (float& value : absmax) value = static_cast<float>(0.05 + 0.01 * random.normal());
  return absmax;
}

TEST(DoubleQuant, ErrorIsSmallAndTheInverseIsTheFormula) {
  for (const size_t count : {size_t{1}, size_t{2}, size_t{255}, size_t{256}, size_t{257}, size_t{5000}}) {
    const std::vector<float> absmax = random_absmax(count);
    const NestedAbsmax nested = compress_absmax(absmax);
    ASSERT_EQ(nested.absmax.size(), (count + 255) / 256);
    std::vector<float> back(count);
    expand_absmax(nested.codes, nested.absmax, kDynamicSigned.data(), nested.offset, back);
    for (size_t i = 0; i < count; ++i) {
      const float product = kDynamicSigned[nested.codes[i]] * nested.absmax[i / 256];
      EXPECT_EQ(back[i], product + nested.offset);
      EXPECT_NEAR(back[i], absmax[i], 0.008f * nested.absmax[i / 256]);  // half the widest gap of the map
    }
  }
}

TEST(DoubleQuant, EdgeCases) {
  EXPECT_EQ(mean_offset({}), 0);
  EXPECT_TRUE(compress_absmax({}).codes.empty());
  const std::vector<float> equal(300, 0.25f);  // what is left of each is 0: blocks of zeros
  const NestedAbsmax nested = compress_absmax(equal);
  EXPECT_EQ(nested.offset, 0.25f);
  EXPECT_EQ(nested.absmax, (std::vector<float>{0, 0}));
  EXPECT_EQ(nested.codes, std::vector<uint8_t>(300, 0));
  std::vector<float> back(300);
  expand_absmax(nested.codes, nested.absmax, kDynamicSigned.data(), nested.offset, back);
  EXPECT_EQ(back, equal);
}

TEST(DoubleQuant, TheOffsetIsTheMeanWithOneRoundedSum) {
  EXPECT_EQ(mean_offset(std::vector<float>{1, 2, 6}), 9.0f * (1.0f / 3.0f));
  const std::vector<float> many(1 << 20, 0.1f);  // an fp32 running sum would be 1 % off
  EXPECT_NEAR(mean_offset(many), 0.1f, 1e-8f);
}

}  // namespace
}  // namespace nibble::quant
