// Finding a tokenizer's file and reading it as what it is.
#include "tokenizer/tokenizer.h"

#include <array>

#include "base/error.h"
#include "base/mapped_file.h"
#include "tokenizer/json_scanner.h"
#include "tokenizer/pipeline.h"
#include "tokenizer/sentencepiece.h"
#include "tokenizer/tiktoken.h"
#include "tokenizer/tokenizer_config.h"
#include "tokenizer/tokenizer_json.h"

namespace nibble {

namespace {

namespace fs = std::filesystem;

fs::path find_file(const fs::path& path) {
  if (!fs::exists(path)) fail(ErrorCode::not_found, "{}: no such file or directory", path.string());
  if (!fs::is_directory(path)) return path;
  for (const char* name : {"tokenizer.json", "tokenizer.model", "tekken.json"}) {
    if (fs::exists(path / name)) return path / name;
  }
  fail(ErrorCode::not_found, "{}: none of tokenizer.json, tokenizer.model, tekken.json", path.string());
}

/// Looks no further than the member: tokenizer.json is large, and its reader judges the rest.
bool has_member(std::string_view text, std::string_view name, std::string_view source) {
  JsonScanner scanner(text, source);
  scanner.expect('{');
  if (scanner.accept('}')) return false;
  do {
    if (scanner.read_string() == name) return true;
    scanner.expect(':');
    scanner.skip_value();
  } while (scanner.accept(','));
  return false;
}

/// The wrapping that the tokenizer class gives a SentencePiece model in transformers.
SentencePieceOptions sentencepiece_options(const TokenizerConfig& config, std::string_view source) {
  // These renumber the pieces: read directly, their ids would be wrong.
  constexpr std::array<std::string_view, 9> kRenumbering = {"XLMRoberta", "Camembert", "MBart",   "Nllb",   "M2M100",
                                                            "XGLM",       "Barthez",   "Pegasus", "Deberta"};
  for (const std::string_view name : kRenumbering) {
    if (config.tokenizer_class.starts_with(name)) {
      fail(ErrorCode::unsupported, "{}: {} needs a tokenizer.json, its ids are not those of the model file", source,
           config.tokenizer_class);
    }
  }
  const bool is_t5 = config.tokenizer_class.starts_with("T5");
  SentencePieceOptions options;
  options.add_bos = config.add_bos_token.value_or(!is_t5);
  options.add_eos = config.add_eos_token.value_or(is_t5);
  options.added_tokens = config.added_tokens;
  return options;
}

PipelineSteps read_steps(std::string_view text, const TokenizerConfig& config, std::string_view source) {
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first != std::string_view::npos && text[first] == '{') {
    if (!has_member(text, "model", source)) return read_tekken(text, source);
    return read_tokenizer_json(text, source, config.added_tokens);
  }
  if (is_tiktoken(text)) return read_tiktoken(text, source);
  return read_sentencepiece(text, sentencepiece_options(config, source), source);
}

}  // namespace

std::shared_ptr<const Tokenizer> Tokenizer::from_json(std::string_view text, std::string_view source) {
  return std::make_shared<Pipeline>(read_tokenizer_json(text, source, {}));
}

std::shared_ptr<const Tokenizer> Tokenizer::load(const fs::path& path) {
  const fs::path file = find_file(path);
  const TokenizerConfig config = fs::is_directory(path) ? read_tokenizer_config(path) : TokenizerConfig{};
  const auto mapped = MappedFile::open(file);
  const auto bytes = mapped->bytes();
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return std::make_shared<Pipeline>(read_steps(text, config, file.string()));
}

}  // namespace nibble
