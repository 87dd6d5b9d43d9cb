// getenv, once.
#include "base/environment.h"

#include <cstdlib>

namespace nibble {

const Environment& environment() {
  static const Environment values = [] {
    const auto text = [](const char* name) {
      const char* value = std::getenv(name);
      return std::string(value ? value : "");
    };
    return Environment{text("NIBBLE_BACKEND"), text("NIBBLE_FORCE_ISA"), text("NIBBLE_PROFILE") == "1"};
  }();
  return values;
}

}  // namespace nibble
