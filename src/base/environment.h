// Debug switches, all of them: environment variables that are read here and nowhere else (docs/debugging.md).
#pragma once

#include <string>

namespace nibble {

struct Environment {
  std::string backend;    // NIBBLE_BACKEND: "reference" runs the plain loops, "cpu" (default) the fast kernels
  std::string force_isa;  // NIBBLE_FORCE_ISA: "portable", "avx2" or "avx512"
  bool profile = false;   // NIBBLE_PROFILE=1: time spent per kernel entry, printed when the program ends
};

/// Read once, at the first call.
const Environment& environment();

}  // namespace nibble
