// Names of devices; what a GPU keeps and copies, where there is one.
#include "device/cuda.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/error.h"
#include "device/device.h"

namespace nibble::device {
namespace {

TEST(Device, NamesGoBothWays) {
  EXPECT_EQ(to_string(parse_device("cpu")), "cpu");
  EXPECT_EQ(to_string(parse_device("cuda")), "cuda:0");
  EXPECT_EQ(to_string(parse_device("cuda:3")), "cuda:3");
  for (const char* name : {"", "gpu", "cuda:", "cuda:-1", "cuda:1x", "cuda:99999999999", "CPU"})
    EXPECT_THROW(parse_device(name), Error) << name;
}

TEST(Cuda, SaysWhatIsMissing) {
  const CudaSupport support = describe_cuda();
  if (support.missing.empty()) {
    EXPECT_FALSE(support.devices.empty());
    EXPECT_GE(support.devices[0].memory_bytes, int64_t{1} << 30);
    try {
      open_cuda(static_cast<int>(support.devices.size()));
      FAIL() << "opened a GPU that is not there";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::invalid_argument);
    }
    return;
  }
  EXPECT_TRUE(support.devices.empty());
  try {
    open_cuda(0);
    FAIL() << "opened a GPU although: " << support.missing;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::device);
    EXPECT_NE(std::string(error.what()).find(support.missing), std::string::npos);
  }
}

class CudaStreamTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const CudaSupport support = describe_cuda();
    if (!support.missing.empty()) GTEST_SKIP() << support.missing;
    stream = open_cuda(0);
  }
  std::shared_ptr<CudaStream> stream;
};

TEST_F(CudaStreamTest, CopiesEveryByte) {
  ThreadPool pool(3);
  for (const int64_t size : {1, 4097, (16 << 20) + 3, 100 << 20}) {
    std::vector<uint8_t> from(static_cast<size_t>(size)), to(from.size());
    for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<uint8_t>(i * 2654435761u >> 24);
    const auto memory = stream->allocate(size);
    stream->upload(memory.get(), from.data(), size, &pool);
    stream->download(to.data(), memory.get(), size);
    EXPECT_EQ(std::memcmp(from.data(), to.data(), from.size()), 0) << size;
  }
}

TEST_F(CudaStreamTest, ReusesMemory) {
  void* first = stream->allocate(1 << 20).get();
  EXPECT_EQ(stream->allocate(1 << 20).get(), first);
  EXPECT_EQ(stream->reserved_bytes(), 1 << 20);
}

TEST_F(CudaStreamTest, OutOfMemoryNamesTheNumbersAndTheStreamGoesOn) {
  std::vector<std::shared_ptr<void>> held;
  try {
    for (int i = 0; i < 100000; ++i) held.push_back(stream->allocate(int64_t{3} << 30));
    FAIL() << "no end of memory";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::out_of_memory);
    EXPECT_NE(std::string(error.what()).find("3221225472"), std::string::npos) << error.what();
  }
  ASSERT_GE(held.size(), 2u) << "a GPU with 6 GB free is needed";
  const int64_t half = static_cast<int64_t>(held.size()) * (int64_t{3} << 30) / 2;
  held.clear();
  int value = 7, found = 0;
  const auto memory = stream->allocate(half);  // the cached blocks are given up
  stream->upload(memory.get(), &value, sizeof value);
  stream->download(&found, memory.get(), sizeof found);
  EXPECT_EQ(found, 7);
}

TEST_F(CudaStreamTest, ALimitEndsWithTheStreamThatSetIt) {
  open_cuda(0)->limit_memory(1);
  EXPECT_NE(stream->allocate(1 << 20), nullptr);
  const auto limited = open_cuda(0);
  limited->limit_memory(1);
  EXPECT_THROW(stream->allocate(2 << 20), Error);
  open_cuda(0);  // another that sets none
  EXPECT_THROW(stream->allocate(2 << 20), Error);
}

TEST_F(CudaStreamTest, StreamsWaitForEachOther) {
  const auto second = open_cuda(0);
  constexpr int64_t kBytes = 64 << 20;
  const auto pinned = stream->allocate_pinned(kBytes), back = stream->allocate_pinned(kBytes);
  const auto memory = stream->allocate(kBytes);
  for (const int value : {1, 2, 3}) {
    std::memset(pinned.get(), value, kBytes);
    stream->copy(memory.get(), pinned.get(), kBytes);
    second->wait_for(*stream->mark());
    second->copy(back.get(), memory.get(), kBytes);
    second->synchronize();
    EXPECT_EQ(std::memcmp(back.get(), pinned.get(), kBytes), 0) << value;
  }
}

TEST_F(CudaStreamTest, GraphsRepeatTheirWork) {
  const auto pinned = stream->allocate_pinned(4), device = stream->allocate(4), back = stream->allocate_pinned(4);
  auto& in = *static_cast<volatile int*>(pinned.get());
  auto& out = *static_cast<volatile int*>(back.get());
  const auto graph = stream->capture([&] {
    stream->copy(device.get(), pinned.get(), 4);
    stream->copy(back.get(), device.get(), 4);
  });
  for (const int value : {3, 5, 8}) {
    in = value;
    graph->launch();
    stream->synchronize();
    EXPECT_EQ(out, value);
  }
}

TEST_F(CudaStreamTest, ARecordingThatFailsLeavesTheStreamInUse) {
  const auto device = stream->allocate(4), pinned = stream->allocate_pinned(4);
  try {
    stream->capture([&] {
      stream->copy(device.get(), pinned.get(), 4);
      stream->synchronize();  // nothing runs yet
    });
    FAIL() << "waited for what is only recorded";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::device);
    EXPECT_EQ(std::string(error.what()).find("any more"), std::string::npos) << error.what();
  }
  EXPECT_THROW(stream->capture([] { fail(ErrorCode::cancelled, "by the work itself"); }), Error);
  auto& value = *static_cast<volatile int*>(pinned.get());
  value = 7;
  stream->capture([&] { stream->copy(device.get(), pinned.get(), 4); })->launch();
  stream->synchronize();
  int found = 0;
  stream->download(&found, device.get(), 4);
  EXPECT_EQ(found, 7);
  stream->check();
}

}  // namespace
}  // namespace nibble::device
