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
      .quantize_4bit = quantize_4bit,
      .dequantize_4bit = dequantize_4bit,
      .quantize_8bit = quantize_8bit,
      .dequantize_8bit = dequantize_8bit,
      .quantize_int8_rows = quantize_int8_rows,
      .dequantize_int8_rows = dequantize_int8_rows,
      .matmul_4bit = matmul_4bit,
      .matmul_dense = matmul_dense,
      .embed = embed,
  };
  return &kernels;
#else
  return nullptr;
#endif
}

}  // namespace nibble::kernels::cuda
