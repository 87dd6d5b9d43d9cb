// The rotary embedding of a config.json: rope_parameters (transformers 5) or rope_theta and rope_scaling.
#pragma once

#include "models/config_reader.h"
#include "nn/rope.h"

namespace nibble::models {

/// `head_dim` times partial_rotary_factor dimensions rotate. Errors: corrupt_file (a key), unsupported (a rope_type).
nn::RopeSpec read_rope(const ConfigReader& config, int64_t head_dim, int64_t max_positions, double default_theta);

}  // namespace nibble::models
