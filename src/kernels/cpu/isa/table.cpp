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
    k.quantize_4bit = quantize_4bit;
    k.dequantize_4bit = dequantize_4bit;
    k.quantize_8bit = quantize_8bit;
    k.dequantize_8bit = dequantize_8bit;
    k.center = center;
    k.quantize_int8_rows = quantize_int8_rows;
    k.dequantize_int8_rows = dequantize_int8_rows;
    k.rms_norm = rms_norm;
    k.layer_norm = layer_norm;
    k.rope = rope;
    k.cache_append = cache_append;
    k.attention = attention;
    k.activate = activate;
    k.embed = embed;
    k.split_heads = split_heads;
    k.softcap = softcap;
    k.route_experts = route_experts;
    k.scatter_add_rows = scatter_add_rows;
    k.input_gradient = input_gradient;
    k.weight_gradient = weight_gradient;
    k.rms_norm_gradient = rms_norm_gradient;
    k.layer_norm_gradient = layer_norm_gradient;
    k.activate_gradient = activate_gradient;
    k.attention_gradient = attention_gradient;
    k.cross_entropy = cross_entropy;
    k.dropout = dropout;
    k.add_scaled = add_scaled;
    k.low_rank_update = low_rank_update;
    k.low_rank_gradient = low_rank_gradient;
    k.scale_columns = scale_columns;
    k.sum_columns = sum_columns;
    k.route_experts_gradient = route_experts_gradient;
    k.dot_rows = dot_rows;
    k.optimizer_step_32bit = optimizer_step_32bit;
    k.optimizer_step_8bit = optimizer_step_8bit;
    k.sum_squares = sum_squares;
    return k;
  }();
  return kernels;
}

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
