// A record is a length, its checksum, a protocol buffer (Event of TensorFlow's event.proto) and its checksum.
#include "train/event_log.h"

#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>
#include <string>

#include "base/error.h"

namespace nibble::train {
namespace {

namespace fs = std::filesystem;

constexpr std::array<uint32_t, 256> make_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = value & 1 ? value >> 1 ^ 0x82f63b78u : value >> 1;
    table[i] = value;
  }
  return table;
}

template <typename Unsigned>
std::string little_endian(Unsigned value) {
  std::string bytes;
  for (size_t i = 0; i < sizeof value; ++i) bytes += static_cast<char>(value >> 8 * i & 0xff);
  return bytes;
}

std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>((value & 0x7f) | 0x80);
  return bytes + static_cast<char>(value);
}

/// A field's number and wire type: 0 a varint, 1 eight bytes, 2 a length and bytes, 5 four bytes.
std::string key(uint64_t field, uint64_t wire) { return varint(field << 3 | wire); }

std::string text(uint64_t field, std::string_view bytes) {
  return key(field, 2) + varint(bytes.size()) + std::string(bytes);
}

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

fs::path file_in(const fs::path& directory) {
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) fail(ErrorCode::io, "{}: cannot be made: {}", directory.string(), error.message());
  return directory / fmt::format("events.out.tfevents.{}.nibble.{}", static_cast<int64_t>(now()), ::getpid());
}

}  // namespace

uint32_t masked_crc32c(std::string_view bytes) {
  static constexpr std::array<uint32_t, 256> kTable = make_table();
  uint32_t crc = 0xffffffffu;
  for (const char byte : bytes) crc = crc >> 8 ^ kTable[(crc ^ static_cast<unsigned char>(byte)) & 0xff];
  crc = ~crc;
  return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

EventLog::EventLog(const fs::path& directory) : file_(file_in(directory)) { write_event(0, text(3, "brain.Event:2")); }

void EventLog::scalar(std::string_view tag, int64_t step, double value) {
  const std::string number = key(2, 5) + little_endian(std::bit_cast<uint32_t>(static_cast<float>(value)));
  write_event(step, text(5, text(1, text(1, tag) + number)));
}

void EventLog::write_event(int64_t step, std::string_view content) {
  const std::string event = key(1, 1) + little_endian(std::bit_cast<uint64_t>(now())) + key(2, 0) +
                            varint(static_cast<uint64_t>(step)) + std::string(content);
  const std::string length = little_endian(static_cast<uint64_t>(event.size()));
  file_.write(length + little_endian(masked_crc32c(length)) + event + little_endian(masked_crc32c(event)));
}

}  // namespace nibble::train
