// Plans: monotone in every size, and about what the documents' rule of thumb says.
#include "nibble/plan.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

TEST(Plan, SevenBillionParametersFollowTheRuleOfThumb) {
  const Plan dense = plan(int64_t{7'000'000'000}, {.memory_bytes = int64_t{12} << 30});
  EXPECT_NEAR(double(dense.weights_bytes), 14e9, 0.1e9);
  EXPECT_FALSE(dense.fits);
  ASSERT_EQ(dense.levels.size(), 4u);
  EXPECT_NEAR(double(dense.levels[1].weights_bytes), 7e9, 0.5e9);
  EXPECT_NEAR(double(dense.levels[2].weights_bytes), 7e9 * 4.5 / 8, 0.5e9);
  EXPECT_LT(dense.levels[3].weights_bytes, dense.levels[2].weights_bytes);
  EXPECT_TRUE(dense.levels[3].fits);
}

TEST(Plan, GrowsWithContextAndBatch) {
  const PlanOptions small{.context = 1024}, large{.context = 2048, .batch_size = 4};
  EXPECT_EQ(plan(int64_t{1'000'000'000}, large).kv_cache_bytes, 8 * plan(int64_t{1'000'000'000}, small).kv_cache_bytes);
  EXPECT_THROW(plan(int64_t{-1}), Error);
  EXPECT_THROW(plan(int64_t{1000}, {.context = 0}), Error);
}

}  // namespace
}  // namespace nibble
