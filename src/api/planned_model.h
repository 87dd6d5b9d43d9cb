// The model that a plan is made for: from its config, or assumed from a parameter count.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include "models/spec.h"
#include "nibble/model.h"

namespace nibble::api {

struct PlannedModel {
  models::ModelSpec spec;
  BitsAndBytesConfig quantization;  // the stored one, or what was asked for
  DType dtype;
  double scale = 1;  // of the weights, where a shape was assumed
};

/// Errors: as resolve_model and the config's.
PlannedModel planned_model(const std::filesystem::path& model, const BitsAndBytesConfig& quantization,
                           std::optional<DType> dtype);
/// Errors: invalid_argument.
PlannedModel planned_model(int64_t parameters, const BitsAndBytesConfig& quantization, std::optional<DType> dtype);

}  // namespace nibble::api
