// tekken.json and tiktoken rank files.
#include "tokenizer/tiktoken.h"

#include <charconv>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/base64.h"
#include "tokenizer/json_scanner.h"
#include "tokenizer/rank_bpe.h"
#include "tokenizer/tokenizer_json.h"
#include "tokenizer/utf8.h"

namespace nibble {

namespace {

PipelineSteps make_steps(RankedVocabulary ranked, const std::vector<std::string>& specials, std::string_view bos,
                         std::string_view pattern, std::string_view source) {
  std::vector<AddedToken> added;
  for (const std::string& special : specials) {
    AddedToken token;
    token.content = special;
    token.normalized = false;
    token.special = true;
    added.push_back(std::move(token));
  }
  RankBpeOptions options;
  options.start_from_bytes = true;
  options.whole_piece_first = true;
  PipelineSteps steps;
  steps.model = std::make_unique<RankBpe>(std::move(ranked), options, source);
  const Json split = {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}};
  steps.pre_tokenizer = make_pre_tokenizer(split, source);
  steps.decoder = make_raw_bytes_decoder();
  if (const auto id = steps.model->vocabulary().find(bos))
    steps.post_processor = PostProcessor(std::vector<int32_t>{*id}, std::vector<int32_t>{});
  steps.added_tokens = AddedTokens(number_added_tokens(std::move(added), steps.model->vocabulary()), nullptr, source);
  return steps;
}

void add_ranked(RankedVocabulary& ranked, std::string_view bytes, int64_t id, int64_t rank, std::string_view source) {
  ranked.vocabulary.insert(bytes, id, source);  // checks the id
  if (ranked.ranks.size() <= static_cast<size_t>(id)) ranked.ranks.resize(static_cast<size_t>(id) + 1, -1);
  ranked.ranks[static_cast<size_t>(id)] = static_cast<int32_t>(rank);
}

// Published files have 1000; the tokens are made from the number alone, so it must not be large.
constexpr int64_t kMaxTekkenSpecials = 16'384;

// What files before version 7 leave out; the rest up to the number of special tokens is <SPECIAL_n>.
constexpr std::string_view kOldTekkenSpecials[] = {"<unk>",
                                                   "<s>",
                                                   "</s>",
                                                   "[INST]",
                                                   "[/INST]",
                                                   "[AVAILABLE_TOOLS]",
                                                   "[/AVAILABLE_TOOLS]",
                                                   "[TOOL_RESULTS]",
                                                   "[/TOOL_RESULTS]",
                                                   "[TOOL_CALLS]",
                                                   "[IMG]",
                                                   "<pad>",
                                                   "[IMG_BREAK]",
                                                   "[IMG_END]",
                                                   "[PREFIX]",
                                                   "[MIDDLE]",
                                                   "[SUFFIX]",
                                                   "[SYSTEM_PROMPT]",
                                                   "[/SYSTEM_PROMPT]",
                                                   "[TOOL_CONTENT]"};

std::vector<std::string> tekken_specials(const Json& root, int64_t count, std::string_view source) {
  std::vector<std::string> specials(static_cast<size_t>(count));
  for (size_t i = 0; i < specials.size(); ++i) specials[i] = fmt::format("<SPECIAL_{}>", i);
  if (const auto listed = find_value<Json>(root, "special_tokens", source)) {
    for (const Json& token : *listed) {
      const auto rank = get_value<int64_t>(token, "rank", source);
      if (rank < 0 || rank >= count) fail(ErrorCode::corrupt_file, "{}: special token {} of {}", source, rank, count);
      specials[static_cast<size_t>(rank)] = get_value<std::string>(token, "token_str", source);
    }
  } else {
    for (size_t i = 0; i < std::min(specials.size(), std::size(kOldTekkenSpecials)); ++i)
      specials[i] = kOldTekkenSpecials[i];
  }
  return specials;
}

struct RankFile {
  size_t ranks;
  std::string_view pattern;
  std::vector<std::string> specials;
};

std::vector<std::string> numbered(std::string_view stem, int first, int end) {
  std::vector<std::string> tokens;
  for (int i = first; i < end; ++i) tokens.push_back(fmt::format("<|{}_{}|>", stem, i));
  return tokens;
}

void append(std::vector<std::string>& tokens, std::vector<std::string> more) {
  for (std::string& token : more) tokens.push_back(std::move(token));
}

RankFile llama3() {
  RankFile file{
      128000,
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|)"
      R"(\s+(?!\S)|\s+)",
      {"<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
       "<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>",
       "<|eot_id|>", "<|python_tag|>", "<|image|>"}};
  append(file.specials, numbered("reserved_special_token", 2, 246));
  return file;
}

RankFile llama4() {
  RankFile file{
      200000,
      R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
      R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
      R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
      {"<|begin_of_text|>", "<|end_of_text|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|header_start|>",
       "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>"}};
  auto& tokens = file.specials;
  append(tokens, numbered("text_post_train_reserved_special_token", 0, 6));
  append(tokens, {"<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>"});
  append(tokens, numbered("text_post_train_reserved_special_token", 8, 69));
  append(tokens, {"<|image_start|>", "<|image_end|>"});
  append(tokens, numbered("vision_reserved_special_token", 0, 2));
  append(tokens, {"<|tile_x_separator|>", "<|tile_y_separator|>"});
  append(tokens, numbered("vision_reserved_special_token", 2, 6));
  append(tokens, {"<|image|>", "<|vision_reserved_special_token_6|>", "<|patch|>"});
  append(tokens, numbered("vision_reserved_special_token", 7, 1048));
  append(tokens, numbered("reasoning_reserved_special_token", 0, 8));
  append(tokens, {"<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>"});
  append(tokens, numbered("reserved_special_token", 0, 2048 - static_cast<int>(tokens.size())));
  return file;
}

/// Cuts "base64 rank" off the front of `text`; false if it does not start so.
bool take_rank(std::string_view& text, std::string_view& base64, int64_t& rank) {
  const std::string_view line = text.substr(0, text.find('\n'));
  const size_t space = line.find(' ');
  if (space == std::string_view::npos || space == 0) return false;
  base64 = line.substr(0, space);
  std::string_view digits = line.substr(space + 1);
  if (digits.ends_with('\r')) digits.remove_suffix(1);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), rank);
  if (error != std::errc() || end != digits.data() + digits.size()) return false;
  text.remove_prefix(std::min(line.size() + 1, text.size()));
  return true;
}

}  // namespace

PipelineSteps read_tekken(std::string_view text, std::string_view source) {
  if (!is_valid_utf8(text)) fail(ErrorCode::corrupt_file, "{}: invalid UTF-8", source);
  std::string rest = "{\"\":0";
  std::string_view vocab;
  JsonScanner scanner(text, source);
  scanner.read_object([&](std::string_view key) {
    const std::string_view value = scanner.skip_value();
    if (key == "vocab")
      vocab = value;
    else
      rest += "," + Json(key).dump() + ":" + std::string(value);
  });
  const Json root = parse_json(rest + "}", source);
  const Json config = get_value<Json>(root, "config", source);
  const auto size = get_value<int64_t>(config, "default_vocab_size", source);
  const auto special_count = get_value<int64_t>(config, "default_num_special_tokens", source);
  if (special_count < 0 || size < special_count || size > kMaxTokenId || vocab.empty()) {
    fail(ErrorCode::corrupt_file, "{}: a vocabulary of {} with {} special tokens", source, size, special_count);
  }
  if (special_count > kMaxTekkenSpecials) fail(ErrorCode::corrupt_file, "{}: {} special tokens", source, special_count);
  RankedVocabulary ranked;
  const auto specials = tekken_specials(root, special_count, source);
  for (size_t i = 0; i < specials.size(); ++i) ranked.vocabulary.insert(specials[i], static_cast<int64_t>(i), source);
  JsonScanner items(vocab, source);
  items.read_array([&] {
    int64_t rank = -1;
    std::string bytes;
    items.read_object([&](std::string_view key) {
      if (key == "rank")
        rank = items.read_integer();
      else if (key == "token_bytes")
        bytes = decode_base64(items.read_string(), source);
      else
        items.skip_value();
    });
    if (rank < 0 || bytes.empty()) fail(ErrorCode::corrupt_file, "{}: a token without rank or bytes", source);
    if (rank < size - special_count) add_ranked(ranked, bytes, rank + special_count, rank, source);
  });
  return make_steps(std::move(ranked), specials, "<s>", get_value<std::string>(config, "pattern", source), source);
}

bool is_tiktoken(std::string_view text) {
  std::string_view base64;
  int64_t rank = 0;
  return take_rank(text, base64, rank) &&
         base64.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=") ==
             std::string_view::npos;
}

PipelineSteps read_tiktoken(std::string_view text, std::string_view source) {
  RankedVocabulary ranked;
  while (!text.empty()) {
    std::string_view base64;
    int64_t rank = 0;
    if (!take_rank(text, base64, rank))
      fail(ErrorCode::corrupt_file, "{}: line {} is not 'base64 rank'", source, ranked.vocabulary.size() + 1);
    add_ranked(ranked, decode_base64(base64, source), rank, rank, source);
  }
  for (RankFile& file : std::vector<RankFile>{llama3(), llama4()}) {
    if (file.ranks != ranked.vocabulary.size()) continue;
    for (size_t i = 0; i < file.specials.size(); ++i) {
      ranked.vocabulary.insert(file.specials[i], static_cast<int64_t>(file.ranks + i), source);
    }
    return make_steps(std::move(ranked), file.specials, "<|begin_of_text|>", file.pattern, source);
  }
  fail(ErrorCode::unsupported, "{}: {} ranks, but only the files of Llama 3 (128000) and Llama 4 (200000) are known",
       source, ranked.vocabulary.size());
}

}  // namespace nibble
