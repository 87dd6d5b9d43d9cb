// The CUDA table.
#include "kernels/cuda/table.h"

#ifdef NIBBLE_HAS_CUDA
#include "kernels/cuda/entries.h"
#endif

namespace nibble::kernels::cuda {

const Kernels* table() {
#ifdef NIBBLE_HAS_CUDA
  static constexpr Kernels kernels{
      .name = "cuda",
      .embed = embed,
  };
  return &kernels;
#else
  return nullptr;
#endif
}

}  // namespace nibble::kernels::cuda
