// The table of one instruction set. An entry is added here, in entries.h and in a file of its own.
#include "kernels/cpu/isa/entries.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

#define NIBBLE_STRING_(text) #text
#define NIBBLE_STRING(text) NIBBLE_STRING_(text)

const Kernels& table() {
  static constexpr Kernels kernels = [] {
    Kernels k;
    k.name = "cpu (" NIBBLE_STRING(NIBBLE_ISA) ")";
    k.matmul_4bit = matmul_4bit;
    k.matmul_dense = matmul_dense;
    k.matmul_int8 = matmul_int8;
    return k;
  }();
  return kernels;
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
