// Where a tensor lies: the main memory, or a GPU's.
#pragma once

#include <string>
#include <string_view>

namespace nibble::device {

struct Device {
  int cuda = -1;  // index of the GPU; -1: the CPU

  bool is_cuda() const { return cuda >= 0; }
  bool operator==(const Device&) const = default;
};

inline constexpr Device kCpu{};

/// "cpu" or "cuda:0".
std::string to_string(Device device);
/// "cpu", "cuda" (the first GPU) or "cuda:N". Errors: invalid_argument; whether the GPU exists is not asked.
Device parse_device(std::string_view name);

}  // namespace nibble::device
