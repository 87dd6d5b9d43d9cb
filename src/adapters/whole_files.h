// A whole trained model as a checkpoint that transformers loads.
#pragma once

#include <filesystem>

#include "adapters/lora.h"

namespace nibble::adapters {

/// Writes config.json and the weights, as `dtype`, into `directory`, which exists.
void write_whole(const Adapter& adapter, const models::Decoder& model, DType dtype,
                 const std::filesystem::path& directory);

/// What write_whole wrote. Errors: not_found, corrupt_file (which tensor; found, expected).
Adapter read_whole(const models::ModelSpec& spec, const std::filesystem::path& directory);

}  // namespace nibble::adapters
