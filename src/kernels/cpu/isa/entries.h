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

}  // namespace nibble::kernels::cpu::NIBBLE_ISA
