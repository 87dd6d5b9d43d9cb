// The rotary embedding of a config.json: rope_parameters (transformers 5) or rope_theta and rope_scaling.
#pragma once

#include "models/config_reader.h"
#include "nn/rope.h"

namespace nibble::models {

/// An architecture's defaults, and what its config called the two before rope_parameters.
struct RopeDefaults {
  double theta = 10000;
  double share = 1;  // of head_dim that rotates
  std::string_view theta_key = "rope_theta";
  std::string_view share_key = "partial_rotary_factor";
  std::string_view scaling_key = "rope_scaling";  // empty: none
  int64_t original_positions = 0;                 // original_max_position_embeddings; 0: the model's
  std::string_view layer_type = {};               // its entry of rope_parameters, where those differ between layers
  bool is_whole = false;                          // all of head_dim rotates: a share in the config is refused
};

/// Errors: corrupt_file (a key), unsupported (a rope_type).
nn::RopeSpec read_rope(const ConfigReader& config, int64_t head_dim, int64_t max_positions,
                       const RopeDefaults& defaults = {});

}  // namespace nibble::models
