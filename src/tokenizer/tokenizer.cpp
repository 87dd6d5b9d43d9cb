// Finding and opening a tokenizer's file.
#include "tokenizer/tokenizer.h"

#include "base/error.h"
#include "base/mapped_file.h"
#include "tokenizer/pipeline.h"
#include "tokenizer/tokenizer_json.h"

namespace nibble {

std::shared_ptr<const Tokenizer> Tokenizer::from_json(std::string_view text, std::string_view source) {
  return std::make_shared<Pipeline>(read_tokenizer_json(text, source));
}

std::shared_ptr<const Tokenizer> Tokenizer::load(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  fs::path file = path;
  if (fs::is_directory(path)) file = path / "tokenizer.json";
  if (!fs::exists(file)) fail(ErrorCode::not_found, "{}: no tokenizer.json", path.string());
  const auto mapped = MappedFile::open(file);
  const auto bytes = mapped->bytes();
  return from_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, file.string());
}

}  // namespace nibble
