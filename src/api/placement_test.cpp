// The device that "auto" takes, for GPUs that are told instead of asked.
#include "api/placement.h"

#include <gtest/gtest.h>

#include <filesystem>

namespace nibble::api {
namespace {

constexpr int64_t kGigabyte = 1'000'000'000;

device::CudaSupport gpus(std::vector<int> capabilities) {
  device::CudaSupport support;
  for (const int capability : capabilities) {
    device::CudaDescription gpu;
    gpu.index = static_cast<int>(support.devices.size());
    gpu.capability = capability;
    support.devices.push_back(gpu);
  }
  return support;
}

TEST(Placement, TakesTheFirstGpuWithRoom) {
  std::vector<int> asked;
  const auto memory = [&](int index) {
    asked.push_back(index);
    return index == 0 ? 2 * kGigabyte : 80 * kGigabyte;
  };
  const Placement second = choose_device(gpus({90, 90, 90}), 5 * kGigabyte, memory);
  EXPECT_EQ(second.device, "cuda:1");
  EXPECT_FALSE(second.is_refused);
  EXPECT_EQ(asked, (std::vector{0, 1})) << "the third is not started";
  EXPECT_EQ(choose_device(gpus({90}), 2 * kGigabyte, memory).device, "cuda:0");
}

TEST(Placement, FallsBackToTheCpuAndSaysWhy) {
  device::CudaSupport none;
  none.missing = "no driver here";
  const auto never = [](int) -> int64_t { throw std::logic_error("asked a GPU that is not there"); };
  const Placement without = choose_device(none, 1, never);
  EXPECT_EQ(without.device, "cpu");
  EXPECT_EQ(without.reason, "no driver here");
  EXPECT_FALSE(without.is_refused);
  const Placement full = choose_device(gpus({70, 90}), 5 * kGigabyte, [](int) { return 3 * kGigabyte; });
  EXPECT_EQ(full.device, "cpu");
  EXPECT_TRUE(full.is_refused);
  for (const char* part : {"5.00 GB", "cuda:0 has compute capability 7.0", "cuda:1 has 3.00 GB free"})
    EXPECT_NE(full.reason.find(part), std::string::npos) << full.reason;
}

TEST(Placement, KeepsToTheMemoryThatItMayTake) {
  const auto memory = [](int) { return 80 * kGigabyte; };
  EXPECT_EQ(choose_device(gpus({90}), 5 * kGigabyte, memory, 5 * kGigabyte).device, "cuda:0");
  const Placement refused = choose_device(gpus({90}), 5 * kGigabyte, memory, 4 * kGigabyte);
  EXPECT_EQ(refused.device, "cpu");
  EXPECT_TRUE(refused.is_refused);
  for (const char* part : {"5.00 GB", "cuda:0 has 80.00 GB free", "max_memory is 4.00 GB"})
    EXPECT_NE(refused.reason.find(part), std::string::npos) << refused.reason;
}

TEST(Placement, NeedsMoreThanTheWeightsAndLessWhenQuantized) {
  const auto models = std::filesystem::path(NIBBLE_TEST_DATA) / "models";
  const ModelSource source = open_config(models / "llama");
  LoadOptions options;
  options.dtype = DType::f32;
  const int64_t whole = needed_device_bytes(source, options);
  EXPECT_GT(whole, inspect(models / "llama", {}, DType::f32).memory_footprint_bytes);
  options.quantization_config.load_in_4bit = true;
  EXPECT_LT(needed_device_bytes(source, options), whole);
}

TEST(Placement, ADeviceThatIsNamedStays) {
  const ModelSource source = open_config(std::filesystem::path(NIBBLE_TEST_DATA) / "models" / "llama");
  LoadOptions options;
  std::string heard;
  options.notice = [&](std::string_view text) { heard = text; };
  options.device_map = "cuda:3";
  EXPECT_EQ(with_device(source, options).device_map, "cuda:3");
  EXPECT_TRUE(heard.empty());
  options.device_map = "auto";
  options.max_memory = 1;  // no GPU has room
  const LoadOptions placed = with_device(source, options);
  EXPECT_EQ(placed.device_map, "cpu");
  EXPECT_EQ(placed.max_memory, 0) << "the CPU has no such limit";
  options.max_memory = 0;
  const std::string device = with_device(source, options).device_map;
  EXPECT_NE(heard.find("device auto: " + device + ": "), std::string::npos) << heard;
}

}  // namespace
}  // namespace nibble::api
