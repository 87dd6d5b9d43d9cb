// Opening a directory or a GGUF file as config and tensors.
#include "api/model_source.h"

#include <array>

#include "base/error.h"
#include "base/output.h"
#include "models/random_weights.h"
#include "models/registry.h"

namespace nibble::api {
namespace fs = std::filesystem;

bool is_gguf_file(const fs::path& path) {
  std::error_code error;
  return path.extension() == ".gguf" && !fs::is_directory(path, error);
}

ModelSource open_config(const fs::path& path) {
  if (is_gguf_file(path)) return open_source(path);
  std::error_code error;
  if (!fs::is_directory(path, error))
    fail(ErrorCode::not_found, "{}: expected a directory with config.json, or a .gguf file", path.string());
  ModelSource source;
  source.path = path;
  source.config_name = (path / "config.json").string();
  source.config = read_json(source.config_name);
  if (const fs::path generation = path / "generation_config.json"; fs::exists(generation, error))
    source.generation_config = read_json(generation);
  return source;
}

ModelSource open_source(const fs::path& path, std::optional<DType> dtype) {
  if (!is_gguf_file(path)) {
    ModelSource source = open_config(path);
    source.checkpoint = Checkpoint::open(path);
    return source;
  }
  ModelSource source;
  source.path = path;
  source.config_name = path.string();
  source.gguf = open_gguf_model(path, dtype.value_or(DType::bf16));
  source.config = source.gguf->config;
  source.generation_config = source.gguf->generation_config;
  source.checkpoint = source.gguf->checkpoint;
  return source;
}

ModelSource open_model(const fs::path& name, const LoadOptions& options) {
  const fs::path path = resolve_model(name.string());
  if (!options.random_weights) return open_source(path, options.dtype);
  ModelSource source = open_config(path);
  source.checkpoint = models::random_checkpoint(models::build_spec(source.config, source.config_name),
                                                options.dtype.value_or(DType::bf16));
  return source;
}

void require_decoder_alone(const ModelSource& source) {
  if (find_value<bool>(source.config, "is_encoder_decoder", source.config_name).value_or(false))
    fail(ErrorCode::unsupported,
         "{}: found is_encoder_decoder, expected a decoder alone; AutoModelForSeq2SeqLM and 'nibble generate' run it",
         source.config_name);
}

void copy_companions(const ModelSource& source, const fs::path& directory) {
  if (source.gguf) {
    write_file(directory / "generation_config.json", source.gguf->generation_config.dump(2) + "\n");
    write_file(directory / "tokenizer.json", source.gguf->tokenizer_json);
    write_file(directory / "tokenizer_config.json", source.gguf->tokenizer_config.dump(2) + "\n");
    return;
  }
  constexpr std::array kNames{"generation_config.json",
                              "tokenizer.json",
                              "tokenizer_config.json",
                              "tokenizer.model",
                              "tekken.json",
                              "special_tokens_map.json",
                              "added_tokens.json",
                              "vocab.json",
                              "vocab.txt",
                              "merges.txt",
                              "chat_template.jinja",
                              "chat_template.json"};
  for (const char* name : kNames) {
    std::error_code error;
    const fs::path from = source.path / name;
    if (!fs::exists(from, error)) continue;
    fs::copy_file(from, directory / name, fs::copy_options::overwrite_existing, error);
    if (error) fail(ErrorCode::io, "{}: cannot copy to {}: {}", from.string(), directory.string(), error.message());
  }
}

void write_config(const Json& config, const fs::path& directory) {
  write_file(directory / "config.json", config.dump(2) + "\n");
}

}  // namespace nibble::api
