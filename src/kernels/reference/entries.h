// The entries of the reference table; their contracts stand in kernels.h.
#pragma once

#include "kernels/kernels.h"

namespace nibble::kernels::reference {

void quantize_4bit(const Context&, const Quantize4BitArgs&);
void dequantize_4bit(const Context&, const Dequantize4BitArgs&);
void quantize_8bit(const Context&, const Quantize8BitArgs&);
void dequantize_8bit(const Context&, const Dequantize8BitArgs&);
void quantize_int8_rows(const Context&, const QuantizeInt8RowsArgs&);
void dequantize_int8_rows(const Context&, const DequantizeInt8RowsArgs&);
void matmul_4bit(const Context&, const MatmulInput&, const Matmul4BitJob* jobs, int64_t count);
void matmul_dense(const Context&, const MatmulInput&, const MatmulDenseJob* jobs, int64_t count);
void matmul_int8(const Context&, const MatmulInput&, float threshold, const MatmulInt8Job* jobs, int64_t count);
void center(const Context&, const CenterArgs&);
void rms_norm(const Context&, const RmsNormArgs&);
void layer_norm(const Context&, const LayerNormArgs&);
void rope(const Context&, const RopeArgs&);
void cache_append(const Context&, const CacheAppendArgs&);
void rotate_append(const Context&, const RotateAppendArgs&);
void attention(const Context&, const AttentionArgs&);
void activate(const Context&, const ActivateArgs&);
void embed(const Context&, const EmbedArgs&);
void split_heads(const Context&, const SplitHeadsArgs&);
void softcap(const Context&, const SoftcapArgs&);
void argmax(const Context&, const ArgmaxArgs&);
void penalize(const Context&, const PenalizeArgs&);
void top_candidates(const Context&, const TopCandidatesArgs&);
void route_experts(const Context&, const RouteExpertsArgs&);
void scatter_add_rows(const Context&, const ScatterAddRowsArgs&);
void input_gradient(const Context&, const InputGradientArgs&);
void weight_gradient(const Context&, const WeightGradientArgs&);
void rms_norm_gradient(const Context&, const RmsNormGradientArgs&);
void layer_norm_gradient(const Context&, const LayerNormGradientArgs&);
void activate_gradient(const Context&, const ActivateGradientArgs&);
void attention_gradient(const Context&, const AttentionGradientArgs&);
void route_experts_gradient(const Context&, const RouteExpertsGradientArgs&);
void dot_rows(const Context&, const DotRowsArgs&);
void cross_entropy(const Context&, const CrossEntropyArgs&);
void dropout(const Context&, const DropoutArgs&);
void add_scaled(const Context&, const AddScaledArgs&);
void low_rank_update(const Context&, const LowRankArgs&);
void low_rank_gradient(const Context&, const LowRankGradientArgs&);
void scale_columns(const Context&, const ScaleColumnsArgs&);
void sum_columns(const Context&, const SumColumnsArgs&);
void optimizer_step_32bit(const Context&, const OptimizerStep32BitArgs&);
void optimizer_step_8bit(const Context&, const OptimizerStep8BitArgs&);
void sum_squares(const Context&, const SumSquaresArgs&);

}  // namespace nibble::kernels::reference
