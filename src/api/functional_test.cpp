// The functional API: sizes, round trips and errors.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/random.h"
#include "nibble/model.h"
#include "nibble/quantize.h"

namespace nibble {
namespace {

std::vector<float> random_values(size_t count) {
  Random random(7);
  std::vector<float> values(count);
  for (auto& value : values) value = static_cast<float>(random.normal());
  return values;
}

TEST(Quantize4Bit, RoundTripOfOddSizes) {
  for (const int64_t cols : {1, 7, 64, 65, 333}) {
    const auto values = random_values(static_cast<size_t>(3 * cols));
    for (const bool nested : {false, true}) {
      const auto tensor = quantize_4bit(std::as_bytes(std::span(values)), DType::f32, {3, cols}, "nf4", 64, nested, 2);
      EXPECT_EQ(tensor.packed.size(), (values.size() + 1) / 2);
      EXPECT_EQ(tensor.nested.has_value(), nested);
      const auto bytes = dequantize_4bit(tensor);
      ASSERT_EQ(bytes.size(), values.size() * 4);
      std::vector<float> back(values.size());
      std::memcpy(back.data(), bytes.data(), bytes.size());
      for (size_t i = 0; i < values.size(); ++i) EXPECT_NEAR(back[i], values[i], 0.6) << i;
    }
  }
}

TEST(Quantize4Bit, RefusesBadArguments) {
  const auto values = random_values(64);
  const auto data = std::as_bytes(std::span(values));
  EXPECT_THROW(quantize_4bit(data, DType::f32, {64}, "nf5"), Error);
  EXPECT_THROW(quantize_4bit(data, DType::f32, {64}, "nf4", 48), Error);
  EXPECT_THROW(quantize_4bit(data, DType::f32, {65}, "nf4"), Error);
  EXPECT_THROW(quantize_4bit(data, DType::i32, {64}, "nf4"), Error);
  auto tensor = quantize_4bit(data, DType::f32, {64}, "nf4");
  tensor.packed.pop_back();
  EXPECT_THROW(dequantize_4bit(tensor), Error);
}

TEST(QuantizeBlockwise, RoundTrip) {
  const auto values = random_values(1000);
  const auto tensor = quantize_blockwise(std::as_bytes(std::span(values)), DType::f32, 256);
  EXPECT_EQ(tensor.absmax.size(), 4u);
  const auto bytes = dequantize_blockwise(tensor);
  std::vector<float> back(values.size());
  std::memcpy(back.data(), bytes.data(), bytes.size());
  for (size_t i = 0; i < values.size(); ++i) EXPECT_NEAR(back[i], values[i], 0.05);
}

TEST(Int8Vectorwise, OutlierColumnsAreLeftOut) {
  auto values = random_values(4 * 32);
  values[1 * 32 + 5] = 20;
  const auto tensor = int8_vectorwise_quant(std::as_bytes(std::span(values)), DType::f32, 4, 32, 6.0);
  EXPECT_EQ(tensor.outlier_columns, (std::vector<int64_t>{5}));
  for (int64_t row = 0; row < 4; ++row) EXPECT_EQ(tensor.values[static_cast<size_t>(row * 32 + 5)], 0);
  const auto back = int8_vectorwise_dequant(tensor);
  for (size_t i = 0; i < values.size(); ++i)
    if (i % 32 != 5) {
      EXPECT_NEAR(back[i], values[i], 0.03);
    }
}

TEST(BitsAndBytesConfig, RefusesContradictions) {
  EXPECT_THROW((BitsAndBytesConfig{.load_in_8bit = true, .load_in_4bit = true}.validate()), Error);
  EXPECT_THROW((BitsAndBytesConfig{.load_in_4bit = true, .bnb_4bit_quant_type = "int4"}.validate()), Error);
  EXPECT_THROW((BitsAndBytesConfig{.load_in_4bit = true, .bnb_4bit_blocksize = 48}.validate()), Error);
  EXPECT_THROW((BitsAndBytesConfig{.load_in_8bit = true, .llm_int8_threshold = NAN}.validate()), Error);
  BitsAndBytesConfig integer_compute{.load_in_4bit = true, .bnb_4bit_compute_dtype = DType::i8};
  EXPECT_THROW(integer_compute.validate(), Error);
  EXPECT_NO_THROW((BitsAndBytesConfig{.load_in_4bit = true, .bnb_4bit_quant_type = "nf4"}.validate()));
}

}  // namespace
}  // namespace nibble
