// The timed table computes the same and counts its calls.
#include "ops/profile.h"

#include <gtest/gtest.h>

#include "kernels/reference/table.h"

namespace nibble::ops {
namespace {

TEST(Profile, CountsCallsAndKeepsResults) {
  const kernels::Kernels& plain = kernels::reference::table();
  const kernels::Kernels& timed = profiled(plain);
  EXPECT_EQ(profile_report(), "");
  const float x[4] = {1, -2, 3, -4}, weight[4] = {1, 1, 1, 1};
  float expected[4], found[4];
  plain.rms_norm({}, {x, weight, 1, 4, 1e-5f, 0, expected});
  for (int i = 0; i < 3; ++i) timed.rms_norm({}, {x, weight, 1, 4, 1e-5f, 0, found});
  for (int i = 0; i < 4; ++i) EXPECT_EQ(found[i], expected[i]);
  EXPECT_NE(profile_report().find("3 calls  rms_norm"), std::string::npos) << profile_report();
}

}  // namespace
}  // namespace nibble::ops
