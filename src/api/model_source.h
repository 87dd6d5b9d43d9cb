// Where a model comes from: its config and tensors, from a directory or a GGUF file.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "base/json.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf_convert.h"
#include "models/quantization.h"
#include "models/spec.h"
#include "nibble/model.h"

namespace nibble::api {

struct ModelSource {
  std::filesystem::path path;  // a directory or a .gguf file
  Json config;
  std::string config_name;  // names the config in errors
  Json generation_config;   // null if there is none
  std::shared_ptr<const Checkpoint> checkpoint;
  std::optional<GgufModel> gguf;  // what a directory would hold beside it
};

/// True for a file whose name ends in .gguf.
bool is_gguf_file(const std::filesystem::path& path);

/// config.json (or the GGUF metadata) without weights.
ModelSource open_config(const std::filesystem::path& path);
/// With weights; those of a GGUF file decode to `dtype` (nullopt: bf16). Errors: not_found, corrupt_file, unsupported.
ModelSource open_source(const std::filesystem::path& path, std::optional<DType> dtype = std::nullopt);

/// What from_pretrained loads: a name that resolve_model accepts, with its weights or random ones.
ModelSource open_model(const std::filesystem::path& name, const LoadOptions& options);

/// Errors: unsupported for an encoder-decoder, naming the class for it.
void require_decoder_alone(const ModelSource& source);

/// Copies what makes a directory whole beside weights and config: tokenizer files, chat template, generation config.
void copy_companions(const ModelSource& source, const std::filesystem::path& directory);

/// Writes config.json as transformers does.
void write_config(const Json& config, const std::filesystem::path& directory);

}  // namespace nibble::api
