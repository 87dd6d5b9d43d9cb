// generation_config.json as GenerationConfig.
#pragma once

#include "api/model_source.h"
#include "nibble/generate.h"

namespace nibble::api {

/// From generation_config.json beside the model where it exists; end-of-text ids also from config.json.
/// Errors: corrupt_file for a value of the wrong type or out of range.
GenerationConfig read_generation_config(const ModelSource& source);

}  // namespace nibble::api
