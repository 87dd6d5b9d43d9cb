// The entries that the CUDA backend has; table.cpp lists them.
#pragma once

#include "kernels/kernels.h"

namespace nibble::kernels::cuda {

void embed(const Context& context, const EmbedArgs& args);

}  // namespace nibble::kernels::cuda
