// AutoTokenizer: a tokenizer, its special tokens and its chat template, from a model's directory.
#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/gguf_convert.h"
#include "nibble/tokenizer.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/tokenizer_config.h"

namespace nibble {

namespace {

struct Source {
  std::shared_ptr<const Tokenizer> tokenizer;
  TokenizerConfig config;
};

Source open_source(const std::filesystem::path& path) {
  if (std::filesystem::is_directory(path)) return {Tokenizer::load(path), read_tokenizer_config(path)};
  if (path.extension() != ".gguf") return {Tokenizer::load(path), read_tokenizer_config(path.parent_path())};
  const GgufModel model = open_gguf_model(path);
  return {Tokenizer::from_json(model.tokenizer_json, path.string()),
          read_tokenizer_config(model.tokenizer_config, model.generation_config, path.string())};
}

}  // namespace

AutoTokenizer AutoTokenizer::from_pretrained(const std::filesystem::path& path) {
  Source source = open_source(path);
  const TokenizerConfig& config = source.config;
  AutoTokenizer result;
  result.tokenizer_ = std::move(source.tokenizer);
  const auto find = [&](const std::optional<std::string>& token, std::optional<int32_t> id) {
    if (token) {
      if (const auto named = result.tokenizer_->token_to_id(*token)) return named;
    }
    return id;
  };
  result.bos_token_id_ = find(config.bos_token, config.bos_token_id);
  result.eos_token_id_ = find(config.eos_token, config.eos_token_id);
  result.pad_token_id_ = find(config.pad_token, config.pad_token_id);
  result.unk_token_id_ = find(config.unk_token, std::nullopt);
  if (!config.chat_template) return result;
  try {
    result.chat_template_ = std::make_shared<ChatTemplate>(*config.chat_template);
  } catch (const Error& error) {  // a model can be used without its template: the error waits for the first use
    result.chat_template_error_ = error;
  }
  return result;
}

std::vector<int32_t> AutoTokenizer::operator()(std::string_view text, const EncodeOptions& options) const {
  return encode(text, options);
}

std::vector<int32_t> AutoTokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  return tokenizer_->encode(text, options);
}

std::string AutoTokenizer::decode(std::span<const int32_t> ids, const DecodeOptions& options) const {
  return tokenizer_->decode(ids, options);
}

bool AutoTokenizer::has_chat_template() const { return chat_template_ != nullptr || chat_template_error_.has_value(); }

std::string AutoTokenizer::apply_chat_template(std::span<const ChatMessage> messages,
                                               bool add_generation_prompt) const {
  if (chat_template_error_) throw *chat_template_error_;
  if (!chat_template_) fail(ErrorCode::not_found, "this tokenizer has no chat template");
  Json context = Json::object();
  context["messages"] = Json::array();
  for (const ChatMessage& message : messages) {
    context["messages"].push_back(Json{{"role", message.role}, {"content", message.content}});
  }
  context["add_generation_prompt"] = add_generation_prompt;
  context["tools"] = nullptr;
  context["documents"] = nullptr;
  const auto token = [&](const char* name, std::optional<int32_t> id) {
    if (!id) return;
    if (auto text = tokenizer_->id_to_token(*id)) context[name] = *std::move(text);
  };
  token("bos_token", bos_token_id_);
  token("eos_token", eos_token_id_);
  token("pad_token", pad_token_id_);
  token("unk_token", unk_token_id_);
  return chat_template_->render(context);
}

int32_t AutoTokenizer::vocab_size() const { return tokenizer_->vocab_size(); }
std::optional<int32_t> AutoTokenizer::bos_token_id() const { return bos_token_id_; }
std::optional<int32_t> AutoTokenizer::eos_token_id() const { return eos_token_id_; }
std::optional<int32_t> AutoTokenizer::pad_token_id() const { return pad_token_id_; }
std::optional<int32_t> AutoTokenizer::token_to_id(std::string_view token) const {
  return tokenizer_->token_to_id(token);
}

}  // namespace nibble
