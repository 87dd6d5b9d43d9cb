// The entries that the CUDA backend has; table.cpp lists them.
#pragma once

#include "kernels/kernels.h"

namespace nibble::kernels::cuda {

void quantize_4bit(const Context& context, const Quantize4BitArgs& args);
void dequantize_4bit(const Context& context, const Dequantize4BitArgs& args);
void quantize_8bit(const Context& context, const Quantize8BitArgs& args);
void dequantize_8bit(const Context& context, const Dequantize8BitArgs& args);
void quantize_int8_rows(const Context& context, const QuantizeInt8RowsArgs& args);
void dequantize_int8_rows(const Context& context, const DequantizeInt8RowsArgs& args);
void matmul_4bit(const Context& context, const MatmulInput& input, const Matmul4BitJob* jobs, int64_t count);
void matmul_dense(const Context& context, const MatmulInput& input, const MatmulDenseJob* jobs, int64_t count);
void embed(const Context& context, const EmbedArgs& args);

}  // namespace nibble::kernels::cuda
