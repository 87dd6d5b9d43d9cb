// A GGUF file as a Hugging Face model: used in place, or written out as a directory.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "base/json.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf.h"

namespace nibble {

/// Everything that a model directory would hold.
struct GgufModel {
  std::shared_ptr<const Checkpoint> checkpoint;
  Json config;                 // config.json
  Json generation_config;      // generation_config.json
  std::string tokenizer_json;  // tokenizer.json
  Json tokenizer_config;       // tokenizer_config.json, with the chat template
};

/// The weights under Hugging Face names; get() decodes to `dtype` (f32, bf16, f16) each time it is called.
/// Errors: unsupported (architecture or tensor, named), corrupt_file.
std::shared_ptr<const Checkpoint> gguf_checkpoint(std::shared_ptr<const GgufFile> file, DType dtype);

/// A `.gguf` file as a model. Errors: as gguf_checkpoint; not_found, io.
GgufModel open_gguf_model(const std::filesystem::path& path, DType dtype = DType::bf16);

/// Writes config.json, generation_config.json, tokenizer.json, tokenizer_config.json and the weights in `dtype` into
/// `directory`, which exists; one tensor in memory at a time. Returns the bytes of weights written.
/// Errors: as gguf_checkpoint; io, cancelled.
int64_t convert_gguf_file(std::shared_ptr<const GgufFile> file, const std::filesystem::path& directory, DType dtype,
                          const Progress& progress);

}  // namespace nibble
