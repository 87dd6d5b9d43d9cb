// An adapter's updates added to the weights of its model.
#pragma once

#include "adapters/lora.h"
#include "models/convert_weights.h"
#include "ops/backend.h"

namespace nibble::adapters {

/// What merging `adapter` changes. Both arguments must outlive the result.
models::ParameterEdits edits_of(const Adapter& adapter, const ops::Backend& backend);

/// `spec` without the ties of parameters that change.
models::ModelSpec untie_edited(models::ModelSpec spec, const models::ParameterEdits& edits);

}  // namespace nibble::adapters
