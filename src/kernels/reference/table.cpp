// The reference table.
#include "kernels/reference/table.h"

namespace nibble::kernels::reference {

const Kernels& table() {
  static constexpr Kernels kernels = [] {
    Kernels k;
    k.name = "reference";
    return k;
  }();
  return kernels;
}

}  // namespace nibble::kernels::reference
