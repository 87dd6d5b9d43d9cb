// The CUDA table.
#include "kernels/cuda/table.h"

#ifdef NIBBLE_HAS_CUDA
#include "kernels/cuda/dense_library.h"
#include "kernels/cuda/entries.h"
#include "kernels/cuda/expert_gradients.h"
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
      .center = center,
      .quantize_int8_rows = quantize_int8_rows,
      .dequantize_int8_rows = dequantize_int8_rows,
      .matmul_4bit = matmul_4bit,
      .matmul_4bit_fused = matmul_4bit_fused,
      .matmul_dense = matmul_dense,
      .matmul_int8 = matmul_int8,
      .matmul_int8_fused = matmul_int8_fused,
      .rms_norm = rms_norm,
      .layer_norm = layer_norm,
      .rope = rope,
      .cache_append = cache_append,
      .rotate_append = rotate_append,
      .attention = attention,
      .rotate_attention = rotate_attention,
      .activate = activate,
      .embed = embed,
      .split_heads = split_heads,
      .softcap = softcap,
      .argmax = argmax,
      .penalize = penalize,
      .top_candidates = top_candidates,
      .route_experts = route_experts,
      .scatter_add_rows = scatter_add_rows,
      .input_gradient = input_gradient,
      .weight_gradient = weight_gradient,
      .rms_norm_gradient = rms_norm_gradient,
      .layer_norm_gradient = layer_norm_gradient,
      .activate_gradient = activate_gradient,
      .attention_gradient = attention_gradient,
      .cross_entropy = cross_entropy,
      .dropout = dropout,
      .add_scaled = add_scaled,
      .low_rank_update = low_rank_update,
      .low_rank_gradient = low_rank_gradient,
      .scale_columns = scale_columns,
      .sum_columns = sum_columns,
      .route_experts_gradient = route_experts_gradient,
      .dot_rows = dot_rows,
      .optimizer_step_32bit = optimizer_step_32bit,
      .optimizer_step_8bit = optimizer_step_8bit,
      .sum_squares = sum_squares,
  };
  return &kernels;
#else
  return nullptr;
#endif
}

#ifndef NIBBLE_HAS_CUDA
int usable_capability(int) { return 0; }
#endif

std::string library_version() {
#ifdef NIBBLE_HAS_CUDA
  return dense_library_version();
#else
  return "";
#endif
}

}  // namespace nibble::kernels::cuda
