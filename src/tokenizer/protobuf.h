// Reading the protocol buffer wire format, field by field, with every size checked.
#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

#include "base/error.h"

namespace nibble {

/// Walks the fields of one message. Errors: corrupt_file with `source` and the offset.
class ProtobufReader {
 public:
  ProtobufReader(std::string_view bytes, std::string_view source) : bytes_(bytes), source_(source) {}

  /// Steps to the next field; false at the end.
  bool next() {
    if (at_ == bytes_.size()) return false;
    const uint64_t key = varint();
    field_ = key >> 3;
    value_ = 0;
    text_ = {};
    switch (key & 7) {
      case 0:
        value_ = varint();
        break;
      case 1:
        value_ = fixed(8);
        break;
      case 2:
        text_ = take(varint());
        break;
      case 5:
        value_ = fixed(4);
        break;
      default:
        fail(ErrorCode::corrupt_file, "{}: protocol buffer: wire type {} at byte {}", source_, key & 7, at_);
    }
    return true;
  }

  uint64_t field() const { return field_; }
  int64_t integer() const { return static_cast<int64_t>(value_); }
  bool boolean() const { return value_ != 0; }
  float real() const { return std::bit_cast<float>(static_cast<uint32_t>(value_)); }
  std::string_view text() const { return text_; }

 private:
  std::string_view take(uint64_t count) {
    if (count > bytes_.size() - at_) {
      fail(ErrorCode::corrupt_file, "{}: protocol buffer: {} bytes at {} in a message of {}", source_, count, at_,
           bytes_.size());
    }
    const std::string_view result = bytes_.substr(at_, count);
    at_ += count;
    return result;
  }
  uint64_t fixed(size_t count) {
    const std::string_view raw = take(count);
    uint64_t value = 0;
    for (size_t i = count; i-- > 0;) value = value << 8 | static_cast<unsigned char>(raw[i]);
    return value;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    fail(ErrorCode::corrupt_file, "{}: protocol buffer: a number longer than 64 bits at byte {}", source_, at_);
  }

  std::string_view bytes_;
  std::string_view source_;
  size_t at_ = 0;
  uint64_t field_ = 0;
  uint64_t value_ = 0;
  std::string_view text_;
};

}  // namespace nibble
