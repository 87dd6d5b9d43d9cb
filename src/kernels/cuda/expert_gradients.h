// Entries of the table for training experts.
#pragma once

#include "kernels/kernels.h"

namespace nibble::kernels::cuda {

void route_experts_gradient(const Context& context, const RouteExpertsGradientArgs& args);
void dot_rows(const Context& context, const DotRowsArgs& args);

}  // namespace nibble::kernels::cuda
