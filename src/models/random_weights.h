// Random weights of a config's shapes: to measure a model that is not at hand.
#pragma once

#include <memory>

#include "checkpoint/checkpoint.h"
#include "models/spec.h"

namespace nibble::models {

/// A checkpoint with every tensor of `spec` in `dtype`: norms are 1, biases and tables small normal deviates, the same
/// for the same spec. All tensors are views of one buffer as large as the largest of them.
std::shared_ptr<const Checkpoint> random_checkpoint(const ModelSpec& spec, DType dtype);

}  // namespace nibble::models
