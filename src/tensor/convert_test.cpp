// Conversion by threads gives what a tensor's own gives.
#include "tensor/convert.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace nibble {
namespace {

TEST(Converted, IsWhatOneThreadGives) {
  ThreadPool pool(3);
  for (const int64_t count : {0, 1, 65536, 65537, 300001}) {
    Tensor x(DType::f32, {count});
    for (int64_t i = 0; i < count; ++i) x.as<float>()[i] = static_cast<float>(i) * 0.37f - 999;
    const Tensor half = converted(x, DType::f16, pool);
    for (const auto& [found, expected] :
         {std::pair{half, x.to(DType::f16)}, std::pair{converted(half, DType::bf16, pool), half.to(DType::bf16)}}) {
      EXPECT_EQ(found.shape(), expected.shape());
      EXPECT_TRUE(std::equal(found.bytes().begin(), found.bytes().end(), expected.bytes().begin())) << count;
    }
  }
}

}  // namespace
}  // namespace nibble
