// What a cache holds while it grows.
#include "nn/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/error.h"

namespace nibble::nn {
namespace {

TEST(KvCache, KeepsItsTokensWhereItGrowsAndWhereItCannot) {
  const ops::Backend backend(1);
  KvCache cache(backend, 2, 3, 4, DType::f32);
  cache.reserve(5);
  std::fill_n(static_cast<float*>(cache.keys(1)), 3 * 5 * 4, 7.0f);
  cache.set_length(5);
  const auto expect_tokens = [&](int64_t capacity) {
    EXPECT_EQ(cache.length(), 5);
    EXPECT_EQ(cache.capacity(), capacity);
    EXPECT_EQ(cache.size_bytes(), 2 * 2 * 3 * 4 * 4 * capacity);
    for (int64_t head = 0; head < 3; ++head)
      for (int64_t i = 0; i < 5 * 4; ++i) ASSERT_EQ(static_cast<float*>(cache.keys(1))[head * capacity * 4 + i], 7.0f);
  };
  const int64_t storage = cache.storage_id();
  EXPECT_THROW(cache.reserve(INT64_MAX), Error);
  EXPECT_EQ(cache.storage_id(), storage);
  expect_tokens(5);
  cache.reserve(6);
  EXPECT_NE(cache.storage_id(), storage);
  expect_tokens(10);
}

TEST(KvCache, ACopyHasTheTokensAndTheRoom) {
  const ops::Backend backend(1);
  KvCache cache(backend, 1, 2, 4, DType::f32), copy(backend, 1, 2, 4, DType::f32);
  cache.reserve(9);
  std::fill_n(static_cast<float*>(cache.values(0)), 2 * 9 * 4, 3.0f);
  cache.set_length(5);
  copy.assign(cache);
  EXPECT_EQ(copy.length(), 5);
  for (int64_t i = 0; i < 5 * 4; ++i) EXPECT_EQ(static_cast<float*>(copy.values(0))[i], 3.0f);
  const int64_t storage = copy.storage_id();
  EXPECT_NE(storage, cache.storage_id());
  copy.reserve(9);
  EXPECT_EQ(copy.storage_id(), storage) << "the next token copied it all again";
}

}  // namespace
}  // namespace nibble::nn
