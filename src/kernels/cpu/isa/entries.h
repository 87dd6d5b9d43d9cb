// Declarations of the entries that every file in this folder defines, once per instruction set.
//
// Files here are compiled with different -m flags into namespace NIBBLE_ISA (portable, avx2, avx512). The linker merges
// inline functions by name and could pick a copy that this processor cannot run, so: no standard-library templates or
// inline functions with external linkage here; helpers are static, in the namespace, or always_inline.
#pragma once

#include "kernels/kernels.h"

namespace nibble::kernels::cpu::NIBBLE_ISA {

const Kernels& table();

void matmul_4bit(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count);
void matmul_dense(const Context& context, const MatmulInput& input, const MatmulDenseJob* jobs, int64_t count);
void matmul_int8(const Context& context, const MatmulInput& input, float threshold, const MatmulInt8Job* jobs,
                 int64_t count);

void quantize_4bit(const Context& context, const Quantize4BitArgs& args);
void dequantize_4bit(const Context& context, const Dequantize4BitArgs& args);
void quantize_8bit(const Context& context, const Quantize8BitArgs& args);
void dequantize_8bit(const Context& context, const Dequantize8BitArgs& args);
void center(const Context& context, const CenterArgs& args);
void quantize_int8_rows(const Context& context, const QuantizeInt8RowsArgs& args);
void dequantize_int8_rows(const Context& context, const DequantizeInt8RowsArgs& args);

void rms_norm(const Context& context, const RmsNormArgs& args);
void layer_norm(const Context& context, const LayerNormArgs& args);
void rope(const Context& context, const RopeArgs& args);
void cache_append(const Context& context, const CacheAppendArgs& args);
void attention(const Context& context, const AttentionArgs& args);
void activate(const Context& context, const ActivateArgs& args);
void embed(const Context& context, const EmbedArgs& args);
void split_heads(const Context& context, const SplitHeadsArgs& args);
void softcap(const Context& context, const SoftcapArgs& args);
void route_experts(const Context& context, const RouteExpertsArgs& args);
void scatter_add_rows(const Context& context, const ScatterAddRowsArgs& args);
void input_gradient(const Context& context, const InputGradientArgs& args);
void weight_gradient(const Context& context, const WeightGradientArgs& args);
void rms_norm_gradient(const Context& context, const RmsNormGradientArgs& args);
void layer_norm_gradient(const Context& context, const LayerNormGradientArgs& args);
void activate_gradient(const Context& context, const ActivateGradientArgs& args);
void attention_gradient(const Context& context, const AttentionGradientArgs& args);
void cross_entropy(const Context& context, const CrossEntropyArgs& args);
void dropout(const Context& context, const DropoutArgs& args);
void add_scaled(const Context& context, const AddScaledArgs& args);
void low_rank_update(const Context& context, const LowRankArgs& args);
void low_rank_gradient(const Context& context, const LowRankGradientArgs& args);
void scale_columns(const Context& context, const ScaleColumnsArgs& args);
void sum_columns(const Context& context, const SumColumnsArgs& args);
void route_experts_gradient(const Context& context, const RouteExpertsGradientArgs& args);
void dot_rows(const Context& context, const DotRowsArgs& args);

void optimizer_step_32bit(const Context& context, const OptimizerStep32BitArgs& args);
void optimizer_step_8bit(const Context& context, const OptimizerStep8BitArgs& args);
void sum_squares(const Context& context, const SumSquaresArgs& args);

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
