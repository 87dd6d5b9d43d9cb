// From config.json to a ModelSpec: the list of architectures.
#pragma once

#include <span>
#include <string_view>

#include "base/json.h"
#include "models/spec.h"

namespace nibble::models {

class ConfigReader;

struct Architecture {
  std::string_view name;  // "LlamaForCausalLM"
  ModelSpec (*build)(const ConfigReader& config);
};

std::span<const Architecture> architectures();

/// The entry that the config's "architectures" names first, or nullptr. Errors: corrupt_file (no such list).
const Architecture* find_architecture(const Json& config, std::string_view source);

/// By the first entry of "architectures". Errors: corrupt_file (a key: found, expected), unsupported (named).
ModelSpec build_spec(const Json& config, std::string_view source);

}  // namespace nibble::models
