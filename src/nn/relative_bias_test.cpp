// Buckets of distances as transformers has them, and the table the attention kernels read.
#include "nn/relative_bias.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <vector>

#include "base/json.h"

namespace nibble::nn {
namespace {

TEST(RelativeBias, BucketsAsTransformers) {
  const auto path = std::filesystem::path(NIBBLE_TEST_DATA) / "models" / "relative_buckets.json";
  const Json goldens = read_json(path);
  const auto first = goldens["first_distance"].get<int64_t>();
  ASSERT_EQ(goldens["cases"].size(), 8u);
  for (const Json& c : goldens["cases"]) {
    const auto expected = c["expected"].get<std::vector<int64_t>>();
    ASSERT_EQ(expected.size(), 601u);
    for (size_t i = 0; i < expected.size(); ++i)
      EXPECT_EQ(relative_bucket(first + static_cast<int64_t>(i), c["buckets"].get<int64_t>(),
                                c["max_distance"].get<int64_t>(), c["is_bidirectional"].get<bool>()),
                expected[i])
          << c["buckets"] << " " << c["max_distance"] << " " << first + static_cast<int64_t>(i);
  }
}

TEST(RelativeBias, ATableHasARowPerHeadAndAColumnPerDistance) {
  Tensor weight(DType::f32, {4, 2});
  for (int64_t i = 0; i < 8; ++i) weight.as<float>()[i] = static_cast<float>(i);
  std::vector<float> table(2 * 5);
  RelativeBias(weight, 100, false).fill(3, table.data());
  EXPECT_EQ(table, (std::vector<float>{4, 2, 0, 0, 0, 5, 3, 1, 1, 1}));  // distances -2, -1, 0, 1, 2
}

}  // namespace
}  // namespace nibble::nn
