// The kernels' scratch memory on a GPU outlives an allocation that fails.
#include <gtest/gtest.h>

#include "base/error.h"
#include "device/cuda.h"
#include "ops/backend.h"

namespace nibble::ops {
namespace {

TEST(GpuScratch, IsThereAgainAfterAnAllocationThatFails) {
  if (const std::string missing = device::describe_cuda().missing; !missing.empty()) GTEST_SKIP() << missing;
  constexpr int64_t kMegabyte = int64_t{1} << 20;
  const Backend backend(1, {.cuda = 0});
  device::CudaStream& stream = *backend.cuda();
  kernels::Scratch& scratch = *backend.context().scratch;
  ASSERT_NE(scratch.reserve(kMegabyte), nullptr);
  const int64_t moves = backend.scratch_moves();
  stream.limit_memory(stream.reserved_bytes() + 64 * kMegabyte);
  EXPECT_THROW(scratch.reserve(1024 * kMegabyte), Error);
  EXPECT_GT(backend.scratch_moves(), moves) << "graphs that name the old memory are stale";
  EXPECT_NE(scratch.reserve(kMegabyte / 2), nullptr);
  stream.limit_memory(0);
}

}  // namespace
}  // namespace nibble::ops
