// adapter_config.json and adapter_model.safetensors, as PEFT reads and writes them.
#pragma once

#include <filesystem>
#include <string>

#include "adapters/lora.h"
#include "base/json.h"

namespace nibble::adapters {

/// Errors: corrupt_file (a key: found, expected), unsupported (a key of PEFT's that changes what is computed).
LoraConfig parse_lora_config(const Json& json, std::string_view source);
/// All of PEFT's keys. `base_model` is base_model_name_or_path.
Json lora_config_json(const LoraConfig& config, const models::ModelSpec& spec, const std::string& base_model);

/// Reads a directory that PEFT or write_adapter wrote. Errors: not_found, corrupt_file (which tensor; found, expected),
/// unsupported; invalid_argument if it belongs to another model (a module that `spec` lacks, another shape).
Adapter read_adapter(const models::ModelSpec& spec, const std::filesystem::path& directory);

/// Writes both files into `directory`, which exists.
void write_adapter(const Adapter& adapter, const models::ModelSpec& spec, const std::string& base_model,
                   const std::filesystem::path& directory);

}  // namespace nibble::adapters
