// Names of devices.
#include "device/device.h"

#include <charconv>

#include "base/error.h"

namespace nibble::device {

std::string to_string(Device device) { return device.is_cuda() ? fmt::format("cuda:{}", device.cuda) : "cpu"; }

Device parse_device(std::string_view name) {
  if (name == "cpu") return kCpu;
  if (name == "cuda") return {0};
  if (name.starts_with("cuda:")) {
    int index = -1;
    const char* end = name.data() + name.size();
    const auto [stop, error] = std::from_chars(name.data() + 5, end, index);
    if (error == std::errc{} && stop == end && index >= 0) return {index};
  }
  fail(ErrorCode::invalid_argument, "device: found '{}', expected cpu, cuda or cuda:N", name);
}

}  // namespace nibble::device
