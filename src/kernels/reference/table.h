// The reference backend: plain loops that define what every entry computes.
#pragma once

#include "kernels/kernels.h"

namespace nibble::kernels::reference {

const Kernels& table();

}  // namespace nibble::kernels::reference
