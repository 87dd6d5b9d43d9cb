// Activation names of a config, what they compute and how torch prints them.
#pragma once

#include <string_view>

#include "kernels/kernels.h"
#include "models/config_reader.h"

namespace nibble::models {

struct ActivationName {
  std::string_view name;  // "silu"
  kernels::Activation activation;
  std::string_view class_name;  // "SiLUActivation"
};

/// Errors: unsupported for a name that is not in the list.
const ActivationName& read_activation(const ConfigReader& config, std::string_view key, std::string_view fallback);

}  // namespace nibble::models
