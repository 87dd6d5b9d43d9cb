// Reading the files around a tokenizer.
#include "tokenizer/tokenizer_config.h"

#include <algorithm>
#include <charconv>

#include "base/output.h"
#include "tokenizer/tokenizer_json.h"
#include "tokenizer/utf8.h"

namespace nibble {

namespace {

namespace fs = std::filesystem;

/// A token is its text, or an object with "content".
std::optional<std::string> find_token(const Json& json, std::string_view key, std::string_view source) {
  const auto value = find_value<Json>(json, key, source);
  if (!value) return std::nullopt;
  if (value->is_object()) return get_value<std::string>(*value, "content", source);
  return find_value<std::string>(json, key, source);
}

/// An id is a number or a list of numbers, of which the first counts.
std::optional<int32_t> find_id(const Json& json, std::string_view key, std::string_view source) {
  auto value = find_value<Json>(json, key, source);
  if (!value) return std::nullopt;
  if (value->is_array()) {
    if (value->empty()) return std::nullopt;
    value = value->front();
  }
  if (!value->is_number_integer()) fail(ErrorCode::corrupt_file, "{}: key '{}' is no token id", source, key);
  const auto id = value->get<int64_t>();
  if (id < 0 || id > kMaxTokenId) return std::nullopt;  // some configs write -1 for none
  return static_cast<int32_t>(id);
}

void read_tokens(const Json& json, TokenizerConfig& config, std::string_view source) {
  const auto fill = [&](std::optional<std::string>& token, std::string_view key) {
    if (!token) token = find_token(json, key, source);
  };
  fill(config.bos_token, "bos_token");
  fill(config.eos_token, "eos_token");
  fill(config.pad_token, "pad_token");
  fill(config.unk_token, "unk_token");
}

void read_ids(const Json& json, TokenizerConfig& config, std::string_view source) {
  const auto fill = [&](std::optional<int32_t>& id, std::string_view key) {
    if (!id) id = find_id(json, key, source);
  };
  fill(config.bos_token_id, "bos_token_id");
  fill(config.eos_token_id, "eos_token_id");
  fill(config.pad_token_id, "pad_token_id");
}

/// One template, or a list of named ones of which "default" counts.
std::optional<std::string> find_template(const Json& json, std::string_view source) {
  const auto value = find_value<Json>(json, "chat_template", source);
  if (!value) return std::nullopt;
  if (!value->is_array()) return find_value<std::string>(json, "chat_template", source);
  for (const Json& entry : *value) {
    if (get_value<std::string>(entry, "name", source) == "default")
      return get_value<std::string>(entry, "template", source);
  }
  return std::nullopt;
}

std::vector<AddedToken> read_added_tokens(const Json& json, std::string_view source) {
  const auto decoder = find_value<Json>(json, "added_tokens_decoder", source);
  std::vector<AddedToken> tokens;
  if (!decoder) return tokens;
  for (const auto& [key, value] : decoder->items()) {
    AddedToken token = read_added_token(value, source);
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), token.id);
    if (error != std::errc() || end != key.data() + key.size()) {
      fail(ErrorCode::corrupt_file, "{}: added_tokens_decoder: '{}' is no token id", source, key);
    }
    tokens.push_back(std::move(token));
  }
  std::sort(tokens.begin(), tokens.end(), [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  return tokens;
}

void read_main_file(const Json& json, TokenizerConfig& config, const std::string& source) {
  config.tokenizer_class = find_value<std::string>(json, "tokenizer_class", source).value_or("");
  config.add_bos_token = find_value<bool>(json, "add_bos_token", source);
  config.add_eos_token = find_value<bool>(json, "add_eos_token", source);
  config.added_tokens = read_added_tokens(json, source);
  config.chat_template = find_template(json, source);
  read_tokens(json, config, source);
}

}  // namespace

TokenizerConfig read_tokenizer_config(const Json& tokenizer_config, const Json& generation_config,
                                      const std::string& source) {
  TokenizerConfig config;
  read_main_file(tokenizer_config, config, source);
  read_ids(generation_config, config, source);
  return config;
}

TokenizerConfig read_tokenizer_config(const fs::path& directory) {
  TokenizerConfig config;
  const auto each = [&](const char* name, auto&& read) {
    const fs::path file = directory / name;
    if (fs::exists(file)) read(read_json(file), file.string());
  };
  each("tokenizer_config.json",
       [&](const Json& json, const std::string& source) { read_main_file(json, config, source); });
  each("special_tokens_map.json",
       [&](const Json& json, const std::string& source) { read_tokens(json, config, source); });
  each("generation_config.json", [&](const Json& json, const std::string& source) { read_ids(json, config, source); });
  each("config.json", [&](const Json& json, const std::string& source) { read_ids(json, config, source); });
  if (const fs::path file = directory / "chat_template.jinja"; fs::exists(file)) {
    config.chat_template = read_file(file, size_t{1} << 22);
    if (!is_valid_utf8(*config.chat_template)) fail(ErrorCode::corrupt_file, "{}: invalid UTF-8", file.string());
  }
  return config;
}

}  // namespace nibble
