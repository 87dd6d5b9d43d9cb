// The CPU backend: the same kernels compiled per instruction set, the best one chosen at run time.
#pragma once

#include <span>

#include "kernels/kernels.h"

namespace nibble::kernels::cpu {

/// An instruction set that this binary holds code for.
struct Isa {
  const char* name;   // "portable", "avx2", "avx512"
  bool is_supported;  // by this machine
  const Kernels* table;
};

/// Worst first.
std::span<const Isa> isas();

/// The best supported one, or NIBBLE_FORCE_ISA. Errors: invalid_argument for an unknown or unsupported name.
const Kernels& table();

}  // namespace nibble::kernels::cpu
