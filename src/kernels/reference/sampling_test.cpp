// The reference's candidates and penalties against numbers worked out by hand.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/reference/table.h"

namespace nibble::kernels {
namespace {

TEST(ReferenceSampling, CandidatesFallAndTiesGoToTheLowestColumn) {
  const std::vector<float> x = {1, 3, NAN, 3, -INFINITY, 2, -INFINITY, NAN, NAN, -INFINITY, -INFINITY, 0.5f};
  std::vector<int32_t> columns(6);
  std::vector<float> values(6), masses(2);
  reference::table().top_candidates({}, {x.data(), 2, 6, 3, 2.0f, columns.data(), values.data(), masses.data()});
  EXPECT_EQ(columns, (std::vector<int32_t>{1, 3, 5, 5, -1, -1}));
  EXPECT_EQ(values, (std::vector<float>{3, 3, 2, 0.5f, -INFINITY, -INFINITY}));
  EXPECT_NEAR(masses[0], 2 + std::exp(-0.5) + std::exp(-1.0), 1e-6);
  EXPECT_EQ(masses[1], 1.0f);
}

TEST(ReferenceSampling, PenaltyMovesScoresDown) {
  std::vector<float> x = {1, -1, 0, 4, 5, -6};
  const std::vector<int32_t> tokens = {1, 0, 2}, offsets = {0, 1, 3};
  reference::table().penalize({}, {x.data(), 2, 3, tokens.data(), offsets.data(), 2.0f});
  EXPECT_EQ(x, (std::vector<float>{1, -2, 0, 2, 5, -12}));
}

}  // namespace
}  // namespace nibble::kernels
