// What a model looks like and weighs, from its config alone: transformers' print, num_parameters, get_memory_footprint.
#pragma once

#include <optional>
#include <string_view>

#include "base/json.h"
#include "models/quantization.h"
#include "models/spec.h"
#include "nibble/model.h"

namespace nibble::models {

/// `dtype` is that of everything that is not quantized.
ModelSummary summarize(const ModelSpec& spec, const QuantizationPlan& plan, DType dtype);

/// From config.json; a quantization_config in it wins over `quantization`. `source` names it in errors.
/// dtype nullopt: the config's own, or float32.
ModelSummary summarize(const Json& config, std::string_view source, const BitsAndBytesConfig& quantization,
                       std::optional<DType> dtype);

}  // namespace nibble::models
