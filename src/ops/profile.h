// NIBBLE_PROFILE: the kernel table with every entry timed.
#pragma once

#include <string>

#include "kernels/kernels.h"

namespace nibble::ops {

/// A table whose entries call those of `table` and add up calls and time, which is that of the GPU where one runs them.
/// Made once for the process.
const kernels::Kernels& profiled(const kernels::Kernels& table);

/// One line an entry that ran, the longest first: seconds, calls, name. Empty if nothing was profiled.
std::string profile_report();

}  // namespace nibble::ops
