// Records of event files, taken apart again.
#include "train/event_log.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "base/folder_case.h"

namespace nibble::train {
namespace {

namespace fs = std::filesystem;

TEST(EventLog, ChecksumsAreMaskedCrc32c) {
  const uint32_t crc = 0xe3069283u;  // of "123456789", the check value of CRC-32C
  EXPECT_EQ(masked_crc32c("123456789"), (crc >> 15 | crc << 17) + 0xa282ead8u);
}

TEST(EventLog, RecordsHoldVersionAndScalars) {
  const Scratch scratch;
  const fs::path& folder = scratch.path;
  {
    EventLog log(folder / "runs");
    log.scalar("train/loss", 300, 1.5);
  }
  std::string bytes;
  for (const auto& entry : fs::directory_iterator(folder / "runs")) {
    EXPECT_TRUE(entry.path().filename().string().starts_with("events.out.tfevents."));
    bytes += read_file(entry.path());
  }
  std::vector<std::string> events;
  for (size_t at = 0; at < bytes.size();) {
    uint64_t length = 0;
    std::memcpy(&length, bytes.data() + at, 8);
    ASSERT_LE(at + 16 + length, bytes.size());
    uint32_t checks[2];
    std::memcpy(&checks[0], bytes.data() + at + 8, 4);
    std::memcpy(&checks[1], bytes.data() + at + 12 + length, 4);
    EXPECT_EQ(checks[0], masked_crc32c(std::string_view(bytes).substr(at, 8)));
    events.push_back(bytes.substr(at + 12, length));
    EXPECT_EQ(checks[1], masked_crc32c(events.back()));
    at += 16 + length;
  }
  ASSERT_EQ(events.size(), 2u);
  EXPECT_TRUE(
      events[0].ends_with("\x1a\x0d"
                          "brain.Event:2"));
  // step 300; summary { value { tag, simple_value } }
  EXPECT_EQ(events[1].substr(9), std::string("\x10\xac\x02\x2a\x13\x0a\x11\x0a\x0atrain/loss\x15\x00\x00\xc0\x3f", 24));
}

}  // namespace
}  // namespace nibble::train
