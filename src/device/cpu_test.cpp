// The machine's description is plausible and the bandwidth probe measures something.
#include "device/cpu.h"

#include <gtest/gtest.h>

#include <vector>

namespace nibble::device {
namespace {

TEST(Cpu, DescriptionIsPlausible) {
  const CpuDescription cpu = describe_cpu();
  EXPECT_GT(cpu.memory_bytes, int64_t{64} << 20);
  EXPECT_GT(cpu.free_memory_bytes, 0);
  EXPECT_LE(cpu.free_memory_bytes, cpu.memory_bytes);
  EXPECT_FALSE(cpu.model_name.empty());
}

TEST(Cpu, PeakRssSeesAnAllocation) {
  const std::vector<char> block(size_t{64} << 20, 1);
  EXPECT_GE(peak_rss_bytes(), static_cast<int64_t>(block.size()));
}

TEST(Cpu, ReadBandwidthIsPlausible) {
  ThreadPool pool(2);
  const double bandwidth = measure_read_bandwidth(pool);
  EXPECT_GT(bandwidth, 1e8);
  EXPECT_LT(bandwidth, 1e13);
}

}  // namespace
}  // namespace nibble::device
