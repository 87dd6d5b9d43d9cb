// Token lists to tokenizer.json. Its large parts are written as text: a Json object of 100,000 keys takes minutes to
// build.
#include "checkpoint/gguf_tokenizer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <unordered_map>

#include "checkpoint/gguf_config.h"

namespace nibble {
namespace {

enum TokenType : int64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4 };

constexpr const char* kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kTekken = R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
                                R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|)"
                                R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct PreTokenizer {
  std::string_view name;  // tokenizer.ggml.pre
  const char* pattern;    // splits text; each match is a word
  bool splits_digits;     // every digit by itself, before the pattern
  bool normalizes_nfc;
  bool ignores_merges;  // a word that is a token is not merged up from bytes
  bool adds_bos;        // unless tokenizer.ggml.add_bos_token says otherwise
};

constexpr std::array<PreTokenizer, 19> kPreTokenizers{{
    {"gpt-2", kGpt2, false, false, false, false},    {"phi-2", kGpt2, false, false, false, false},
    {"olmo", kGpt2, false, false, false, false},     {"mpt", kGpt2, false, false, false, false},
    {"jina-es", kGpt2, false, false, false, false},  {"jina-de", kGpt2, false, false, false, false},
    {"smollm", kGpt2, true, false, false, false},    {"starcoder", kGpt2, true, false, false, false},
    {"refact", kGpt2, true, false, false, false},    {"command-r", kGpt2, true, false, false, false},
    {"codeshell", kGpt2, true, false, false, false}, {"llama-bpe", kLlama3, false, false, true, true},
    {"llama3", kLlama3, false, false, true, true},   {"llama-v3", kLlama3, false, false, true, true},
    {"dbrx", kLlama3, false, false, false, false},   {"smaug-bpe", kLlama3, false, false, false, false},
    {"qwen2", kQwen2, false, true, false, false},    {"deepseek-r1-qwen", kQwen2, false, true, false, false},
    {"tekken", kTekken, false, false, true, true},
}};

std::string quoted(std::string_view text) { return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace); }

constexpr size_t kMaxPieceBytes = 1024;  // no text merges into a longer token: its parts grow with the square of that

// The lists that every tokenizer has, checked against each other.
struct Tokens {
  std::vector<std::string_view> texts;
  std::vector<int64_t> types;
  std::unordered_map<std::string_view, int64_t> ids;

  explicit Tokens(const GgufFile& file);
  bool is_added(size_t id) const { return types[id] == kUnknown || types[id] == kControl || types[id] == kUserDefined; }
};

std::string_view text_at(const GgufFile& file, std::string_view key, const GgufValue& value) {
  const auto* text = std::get_if<std::string>(&value.value);
  if (!text) fail(ErrorCode::corrupt_file, "{}: key '{}': expected texts", file.source(), key);
  return *text;
}

const GgufArray& get_array(const GgufFile& file, std::string_view key) {
  const GgufArray* array = file.find_array(key);
  if (!array) fail(ErrorCode::corrupt_file, "{}: key '{}' is missing", file.source(), key);
  return *array;
}

Tokens::Tokens(const GgufFile& file) {
  constexpr std::string_view kTokens = "tokenizer.ggml.tokens", kTypes = "tokenizer.ggml.token_type";
  for (const auto& value : get_array(file, kTokens)) texts.push_back(text_at(file, kTokens, value));
  types.assign(texts.size(), kNormal);
  if (const GgufArray* stored = file.find_array(kTypes)) {
    if (stored->size() != texts.size())
      fail(ErrorCode::corrupt_file, "{}: key '{}': found {} values, expected {}", file.source(), kTypes, stored->size(),
           texts.size());
    for (size_t i = 0; i < texts.size(); ++i) {
      const auto* is_signed = std::get_if<int64_t>(&(*stored)[i].value);
      const auto* is_unsigned = std::get_if<uint64_t>(&(*stored)[i].value);
      if (!is_signed && !is_unsigned)
        fail(ErrorCode::corrupt_file, "{}: key '{}': expected integers", file.source(), kTypes);
      types[i] = is_signed ? *is_signed : static_cast<int64_t>(*is_unsigned);
    }
  }
  for (size_t i = 0; i < texts.size(); ++i)
    if (!ids.emplace(texts[i], static_cast<int64_t>(i)).second)
      fail(ErrorCode::corrupt_file, "{}: key '{}': '{}' appears twice", file.source(), kTokens, texts[i]);
}

std::optional<size_t> find_special(const GgufFile& file, const Tokens& tokens, std::string_view name) {
  const std::string key = fmt::format("tokenizer.ggml.{}_token_id", name);
  const auto id = file.find_integer(key);
  if (!id) return std::nullopt;
  if (*id < 0 || static_cast<size_t>(*id) >= tokens.texts.size())
    fail(ErrorCode::corrupt_file, "{}: key '{}': found {}, expected less than {}", file.source(), key, *id,
         tokens.texts.size());
  return static_cast<size_t>(*id);
}

bool is_sentencepiece(const GgufFile& file) {
  const std::string* model = file.find_text("tokenizer.ggml.model");
  if (!model) fail(ErrorCode::corrupt_file, "{}: key 'tokenizer.ggml.model' is missing", file.source());
  if (*model == "llama") return true;
  if (*model == "gpt2") return false;
  fail(ErrorCode::unsupported, "{}: tokenizer '{}' is not supported: expected gpt2 or llama", file.source(), *model);
}

const PreTokenizer& pre_tokenizer(const GgufFile& file) {
  const std::string* name = file.find_text("tokenizer.ggml.pre");
  if (!name)
    fail(ErrorCode::unsupported, "{}: key 'tokenizer.ggml.pre' is missing: how to split text is not known",
         file.source());
  const auto* found =
      std::find_if(kPreTokenizers.begin(), kPreTokenizers.end(), [&](const auto& row) { return row.name == *name; });
  if (found == kPreTokenizers.end())
    fail(ErrorCode::unsupported, "{}: pre-tokenizer '{}' is not supported", file.source(), *name);
  return *found;
}

using Merge = std::pair<std::string_view, std::string_view>;

// "left right", divided at the first space that is not the first character.
std::vector<Merge> stored_merges(const GgufFile& file, const Tokens& tokens) {
  constexpr std::string_view kMerges = "tokenizer.ggml.merges";
  std::vector<Merge> merges;
  for (const auto& value : get_array(file, kMerges)) {
    const std::string_view text = text_at(file, kMerges, value);
    const size_t space = text.find(' ', 1);
    const Merge merge =
        space == std::string_view::npos ? Merge{} : Merge{text.substr(0, space), text.substr(space + 1)};
    if (!tokens.ids.contains(merge.first) || !tokens.ids.contains(merge.second))
      fail(ErrorCode::corrupt_file, "{}: key '{}': '{}' is not two tokens", file.source(), kMerges, text);
    merges.push_back(merge);
  }
  return merges;
}

bool starts_character(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) != 0x80; }

// SentencePiece keeps a score for each piece instead of merges: every way to make a piece of two others, best pieces
// first.
std::vector<Merge> merges_from_scores(const GgufFile& file, const Tokens& tokens) {
  constexpr std::string_view kScores = "tokenizer.ggml.scores";
  const GgufArray& scores = get_array(file, kScores);
  if (scores.size() != tokens.texts.size())
    fail(ErrorCode::corrupt_file, "{}: key '{}': found {} values, expected {}", file.source(), kScores, scores.size(),
         tokens.texts.size());
  std::vector<std::pair<double, Merge>> found;
  for (size_t id = 0; id < tokens.texts.size(); ++id) {
    const auto* score = std::get_if<double>(&scores[id].value);
    if (!score || std::isnan(*score))
      fail(ErrorCode::corrupt_file, "{}: key '{}': expected numbers", file.source(), kScores);
    if (tokens.types[id] != kNormal) continue;
    const std::string_view piece = tokens.texts[id];
    if (piece.size() > kMaxPieceBytes) continue;
    for (size_t cut = piece.size(); cut-- > 1;) {  // as transformers ranks them: the longest left part first
      if (!starts_character(piece[cut])) continue;
      const auto left = tokens.ids.find(piece.substr(0, cut)), right = tokens.ids.find(piece.substr(cut));
      if (left != tokens.ids.end() && right != tokens.ids.end()) found.push_back({*score, {left->first, right->first}});
    }
  }
  std::stable_sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  std::vector<Merge> merges;
  for (const auto& [score, merge] : found) merges.push_back(merge);
  return merges;
}

Json split(const char* pattern, const char* behavior) {
  return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", behavior}, {"invert", false}};
}

Json byte_level(bool uses_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", uses_regex}};
}

Json pre_tokenizer_json(const PreTokenizer& pre) {
  Json steps = Json::array();
  if (pre.splits_digits) steps.push_back({{"type", "Digits"}, {"individual_digits", true}});
  if (pre.pattern != kGpt2) steps.push_back(split(pre.pattern, "Isolated"));  // ByteLevel has GPT-2's pattern itself
  steps.push_back(byte_level(pre.pattern == kGpt2));
  return {{"type", "Sequence"}, {"pretokenizers", steps}};
}

Json replace(const char* from, const char* to) {
  return {{"type", "Replace"}, {"pattern", {{"String", from}}}, {"content", to}};
}

// SentencePiece writes a space as U+2581 and, mostly, puts one before the text.
Json sentencepiece_normalizer(bool adds_space) {
  Json steps = Json::array();
  if (adds_space) steps.push_back({{"type", "Prepend"}, {"prepend", "\u2581"}});
  steps.push_back(replace(" ", "\u2581"));
  return {{"type", "Sequence"}, {"normalizers", steps}};
}

Json sentencepiece_decoder(bool adds_space) {
  Json steps = {replace("\u2581", " "), {{"type", "ByteFallback"}}, {{"type", "Fuse"}}};
  if (adds_space) steps.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  return {{"type", "Sequence"}, {"decoders", steps}};
}

// Puts the beginning and end tokens that the model was trained with around a text.
Json post_processor(const GgufFile& file, const Tokens& tokens, bool adds_bos) {
  const auto bos = find_special(file, tokens, "bos"), eos = find_special(file, tokens, "eos");
  adds_bos = file.find_bool("tokenizer.ggml.add_bos_token").value_or(adds_bos) && bos;
  const bool adds_eos = file.find_bool("tokenizer.ggml.add_eos_token").value_or(false) && eos;
  if (!adds_bos && !adds_eos) return nullptr;
  Json single = Json::array(), pair = Json::array(), special = Json::object();
  const auto add = [&](size_t id) {
    const std::string text(tokens.texts[id]);
    single.push_back({{"SpecialToken", {{"id", text}, {"type_id", 0}}}});
    special[text] = {{"id", text}, {"ids", {id}}, {"tokens", {text}}};
  };
  if (adds_bos) add(*bos);
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  if (adds_eos) add(*eos);
  for (Json item : single) pair.push_back(item);
  for (Json item : single) {
    for (auto& [kind, value] : item.items()) {
      value["type_id"] = 1;
      if (kind == "Sequence") value["id"] = "B";
    }
    pair.push_back(item);
  }
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", special}};
}

Json added_token(const Tokens& tokens, size_t id) {
  return {{"content", std::string(tokens.texts[id])},
          {"single_word", false},
          {"lstrip", false},
          {"rstrip", false},
          {"normalized", false},
          {"special", tokens.types[id] != kUserDefined}};
}

// {"type": "BPE", ...} with vocabulary and merges.
std::string model_json(const Tokens& tokens, const std::vector<Merge>& merges, const Json& options) {
  std::string text = options.dump();
  text.back() = ',';
  text += "\"vocab\":{";
  for (size_t id = 0; id < tokens.texts.size(); ++id)
    text += fmt::format("{}{}:{}", id ? ",\n" : "\n", quoted(tokens.texts[id]), id);
  text += "},\"merges\":[";
  std::string_view separator = "\n";
  for (const auto& [left, right] : merges) {
    text += fmt::format("{}[{},{}]", separator, quoted(left), quoted(right));
    separator = ",\n";
  }
  return text + "]}";
}

}  // namespace

std::string gguf_tokenizer_json(const GgufFile& file) {
  const Tokens tokens(file);
  const bool sentencepiece = is_sentencepiece(file);
  Json model{{"type", "BPE"},
             {"dropout", nullptr},
             {"unk_token", nullptr},
             {"continuing_subword_prefix", nullptr},
             {"end_of_word_suffix", nullptr},
             {"fuse_unk", sentencepiece},
             {"byte_fallback", sentencepiece},
             {"ignore_merges", false}};
  Json normalizer, pre_tokens, decoder;
  bool adds_bos = sentencepiece;
  if (sentencepiece) {
    const bool adds_space = file.find_bool("tokenizer.ggml.add_space_prefix").value_or(true);
    if (const auto unknown = find_special(file, tokens, "unknown"))
      model["unk_token"] = std::string(tokens.texts[*unknown]);
    normalizer = sentencepiece_normalizer(adds_space);
    decoder = sentencepiece_decoder(adds_space);
  } else {
    const PreTokenizer& pre = pre_tokenizer(file);
    model["ignore_merges"] = pre.ignores_merges;
    if (pre.normalizes_nfc) normalizer = {{"type", "NFC"}};
    pre_tokens = pre_tokenizer_json(pre);
    decoder = byte_level(true);
    adds_bos = pre.adds_bos;
  }
  const auto dump = [](const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); };
  std::string text = R"({"version":"1.0","truncation":null,"padding":null,"added_tokens":[)";
  std::string_view separator = "\n";
  for (size_t id = 0; id < tokens.texts.size(); ++id) {
    if (!tokens.is_added(id)) continue;
    Json added{{"id", id}};
    added.update(added_token(tokens, id));
    text += fmt::format("{}{}", separator, dump(added));
    separator = ",\n";
  }
  text +=
      fmt::format("],\n\"normalizer\":{},\n\"pre_tokenizer\":{},\n\"post_processor\":{},\n\"decoder\":{},\n\"model\":",
                  dump(normalizer), dump(pre_tokens), dump(post_processor(file, tokens, adds_bos)), dump(decoder));
  return text +
         model_json(tokens, sentencepiece ? merges_from_scores(file, tokens) : stored_merges(file, tokens), model) +
         "}\n";
}

Json gguf_tokenizer_config(const GgufFile& file) {
  const Tokens tokens(file);
  Json decoder = Json::object();
  auto& added = decoder.get_ref<Json::object_t&>();
  for (size_t id = 0; id < tokens.texts.size(); ++id)  // appended as to a vector: the object would look for each key
    if (tokens.is_added(id)) added.Json::object_t::Container::emplace_back(std::to_string(id), added_token(tokens, id));
  Json config{{"added_tokens_decoder", decoder}};
  constexpr std::array<std::pair<const char*, const char*>, 4> kSpecial{
      {{"bos", "bos_token"}, {"eos", "eos_token"}, {"unknown", "unk_token"}, {"padding", "pad_token"}}};
  for (const auto& [name, key] : kSpecial)
    if (const auto id = find_special(file, tokens, name)) config[key] = std::string(tokens.texts[*id]);
  if (const std::string* chat = file.find_text("tokenizer.chat_template")) config["chat_template"] = *chat;
  config["clean_up_tokenization_spaces"] = false;
  config["model_max_length"] = file.get_integer(fmt::format("{}.context_length", gguf_architecture(file).name));
  config["tokenizer_class"] = "PreTrainedTokenizerFast";
  return config;
}

}  // namespace nibble
