// Sample files and in-memory safetensors for the tests of this folder.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "base/output.h"
#include "checkpoint/checkpoint.h"
#include "nibble/types.h"

namespace nibble::samples {

inline std::filesystem::path path_of(std::string_view name) {
  return std::filesystem::path(NIBBLE_TEST_DATA) / "checkpoint" / name;
}

/// A new empty directory under the system's place for temporary files.
inline std::filesystem::path make_directory(const std::string& name) {
  const auto path = std::filesystem::path(testing::TempDir()) / ("nibble_" + name);
  std::filesystem::remove_all(path);
  std::filesystem::create_directories(path);
  return path;
}

/// A file's bytes on the heap with nothing behind them, so that a sanitizer sees a read past the end.
struct ExactBytes {
  explicit ExactBytes(std::string_view text) : data(new std::byte[text.size()]), size(text.size()) {
    std::memcpy(data.get(), text.data(), text.size());
  }
  std::span<const std::byte> span() const { return {data.get(), size}; }
  std::unique_ptr<std::byte[]> data;
  size_t size;
};

/// Length, header and data of a safetensors file.
inline std::string safetensors(const std::string& header, size_t data_bytes) {
  std::string file(8, '\0');
  for (size_t i = 0; i < 8; ++i) file[i] = static_cast<char>((header.size() >> (8 * i)) & 0xff);
  return file + header + std::string(data_bytes, '\1');
}

/// Code and message of the Error that `action` throws; "nothing" if it throws none.
template <typename Action>
std::string error_of(const Action& action, ErrorCode expected) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), expected) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "expected an Error";
  return "nothing";
}

}  // namespace nibble::samples
