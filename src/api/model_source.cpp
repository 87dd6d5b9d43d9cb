// Opening a directory or a GGUF file as config and tensors.
#include "api/model_source.h"

#include <array>

#include "base/error.h"
#include "base/output.h"
#include "checkpoint/gguf_convert.h"

namespace nibble::api {
namespace fs = std::filesystem;

ModelSource open_config(const fs::path& path) {
  std::error_code error;
  if (path.extension() == ".gguf" && !fs::is_directory(path, error)) return open_source(path);
  if (!fs::is_directory(path, error))
    fail(ErrorCode::not_found, "{}: expected a directory with config.json, or a .gguf file", path.string());
  const fs::path config = path / "config.json";
  return {path, read_json(config), config.string(), nullptr};
}

ModelSource open_source(const fs::path& path) {
  std::error_code error;
  if (path.extension() == ".gguf" && !fs::is_directory(path, error)) {
    GgufModel model = open_gguf_model(path);
    return {path, std::move(model.config), path.string(), std::move(model.checkpoint)};
  }
  ModelSource source = open_config(path);
  source.checkpoint = Checkpoint::open(path);
  return source;
}

void copy_companions(const ModelSource& source, const fs::path& directory) {
  if (source.is_gguf()) {
    write_gguf_companions(source.path, directory);
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
    fs::copy_file(from, directory / name, fs::copy_options::none, error);
    if (error) fail(ErrorCode::io, "{}: cannot copy to {}: {}", from.string(), directory.string(), error.message());
  }
}

void write_config(const Json& config, const fs::path& directory) {
  write_file(directory / "config.json", config.dump(2) + "\n");
}

}  // namespace nibble::api
