// The entries that the CUDA backend has; table.cpp lists them.
#pragma once

#include "kernels/kernels.h"

namespace nibble::kernels::cuda {

void quantize_4bit(const Context& context, const Quantize4BitArgs& args);
void dequantize_4bit(const Context& context, const Dequantize4BitArgs& args);
void quantize_8bit(const Context& context, const Quantize8BitArgs& args);
void dequantize_8bit(const Context& context, const Dequantize8BitArgs& args);
void center(const Context& context, const CenterArgs& args);
void quantize_int8_rows(const Context& context, const QuantizeInt8RowsArgs& args);
void dequantize_int8_rows(const Context& context, const DequantizeInt8RowsArgs& args);
void matmul_4bit(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count);
bool matmul_4bit_fused(const Context& context, const Fused4BitArgs& args);
void matmul_int8(const Context& context, const MatmulInput& input, float threshold, const MatmulInt8Job* jobs,
                 int64_t count);
bool matmul_int8_fused(const Context& context, const FusedInt8Args& args);
void matmul_dense(const Context& context, const MatmulInput& input, const MatmulDenseJob* jobs, int64_t count);
void rms_norm(const Context& context, const RmsNormArgs& args);
void layer_norm(const Context& context, const LayerNormArgs& args);
void rope(const Context& context, const RopeArgs& args);
void cache_append(const Context& context, const CacheAppendArgs& args);
void rotate_append(const Context& context, const RotateAppendArgs& args);
bool rotate_attention(const Context& context, const RotateAppendArgs& rotation, const AttentionArgs& args);
void attention(const Context& context, const AttentionArgs& args);
void activate(const Context& context, const ActivateArgs& args);
void embed(const Context& context, const EmbedArgs& args);
void split_heads(const Context& context, const SplitHeadsArgs& args);
void softcap(const Context& context, const SoftcapArgs& args);
void argmax(const Context& context, const ArgmaxArgs& args);
void penalize(const Context& context, const PenalizeArgs& args);
void top_candidates(const Context& context, const TopCandidatesArgs& args);
void route_experts(const Context& context, const RouteExpertsArgs& args);
void scatter_add_rows(const Context& context, const ScatterAddRowsArgs& args);
void optimizer_step_32bit(const Context& context, const OptimizerStep32BitArgs& args);
void optimizer_step_8bit(const Context& context, const OptimizerStep8BitArgs& args);
void sum_squares(const Context& context, const SumSquaresArgs& args);
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

}  // namespace nibble::kernels::cuda
