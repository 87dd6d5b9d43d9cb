// Scalars in the event files that TensorBoard reads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

#include "base/output.h"

namespace nibble::train {

/// CRC-32C of `bytes` (Castagnoli), as records of event files carry it, masked.
uint32_t masked_crc32c(std::string_view bytes);

/// Appends events to a file of its own: each is whole on disk once scalar() returns.
class EventLog {
 public:
  /// Errors: io.
  explicit EventLog(const std::filesystem::path& directory);
  void scalar(std::string_view tag, int64_t step, double value);

 private:
  void write_event(int64_t step, std::string_view content);
  OutputFile file_;
};

}  // namespace nibble::train
