// tokenizer.json: "model" through a scanner, everything else through base/json.
#include "tokenizer/tokenizer_json.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <optional>
#include <unordered_map>
#include <unordered_set>

#include "tokenizer/bpe.h"
#include "tokenizer/json_scanner.h"
#include "tokenizer/unigram.h"
#include "tokenizer/utf8.h"
#include "tokenizer/wordpiece.h"

namespace nibble {

namespace {

/// Merges as text pairs: views into the file, or into `unescaped` for those with escapes.
struct MergeList {
  std::vector<Bpe::TextPair> pairs;
  std::deque<std::string> unescaped;  // its strings never move
};

/// The file with its big members read or cut out on the way, in one pass.
struct Outline {
  Json root;                             // "model" without "vocab" and "merges"
  std::optional<Vocabulary> vocabulary;  // a "vocab" that is an object
  std::string_view scored_vocabulary;    // a "vocab" that is a list, as text
  std::optional<MergeList> merges;
};

Vocabulary read_vocabulary(JsonScanner& scanner, std::string_view source) {
  Vocabulary vocabulary;
  scanner.expect('{');
  if (scanner.accept('}')) return vocabulary;
  std::string escaped;
  do {
    std::string_view token = scanner.read_string();
    if (scanner.was_escaped()) token = escaped = token;
    scanner.expect(':');
    vocabulary.insert(token, scanner.read_integer(), source);
  } while (scanner.accept(','));
  scanner.expect('}');
  return vocabulary;
}

MergeList read_merges(JsonScanner& scanner, std::string_view source) {
  MergeList merges;
  const auto read = [&]() -> std::string_view {
    const std::string_view value = scanner.read_string();
    return scanner.was_escaped() ? std::string_view(merges.unescaped.emplace_back(value)) : value;
  };
  scanner.read_array([&] {
    if (scanner.accept('[')) {
      const std::string_view left = read();
      scanner.expect(',');
      merges.pairs.emplace_back(left, read());
      scanner.expect(']');
      return;
    }
    const std::string_view line = read();
    if (line.starts_with("#version")) return;
    const size_t space = line.find(' ');
    if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos) {
      fail(ErrorCode::corrupt_file, "{}: merge {}: '{}' is not two tokens", source, merges.pairs.size(), line);
    }
    merges.pairs.emplace_back(line.substr(0, space), line.substr(space + 1));
  });
  return merges;
}

Outline read_outline(std::string_view text, std::string_view source) {
  Outline outline;
  std::string rest = "{";
  const auto member = [&rest](std::string_view key, std::string_view value) {
    if (rest.back() != '{') rest += ',';
    rest += Json(key).dump();
    rest += ':';
    rest += value;
  };
  JsonScanner scanner(text, source);
  scanner.read_object([&](std::string_view key) {
    if (key != "model" || scanner.peek() != '{') return member(key, scanner.skip_value());
    member(key, "{");
    scanner.read_object([&](std::string_view part) {
      if (part == "vocab" && scanner.peek() == '{')
        outline.vocabulary = read_vocabulary(scanner, source);
      else if (part == "vocab")
        outline.scored_vocabulary = scanner.skip_value();
      else if (part == "merges")
        outline.merges = read_merges(scanner, source);
      else
        member(part, scanner.skip_value());
    });
    rest += '}';
  });
  if (scanner.peek() != 0) fail(ErrorCode::corrupt_file, "{}: broken JSON: text after the end", source);
  outline.root = parse_json(rest + "}", source);
  return outline;
}

Vocabulary take_vocabulary(Outline& outline, std::string_view source) {
  if (!outline.vocabulary) fail(ErrorCode::corrupt_file, "{}: key 'model.vocab' is missing or no object", source);
  return *std::move(outline.vocabulary);
}

std::unique_ptr<TokenModel> read_bpe(const Json& model, Outline& outline, std::string_view source) {
  BpeOptions options;
  const auto text = [&](std::string_view key) { return find_value<std::string>(model, key, source); };
  const auto flag = [&](std::string_view key) { return find_value<bool>(model, key, source).value_or(false); };
  options.unk_token = text("unk_token");
  options.continuing_subword_prefix = text("continuing_subword_prefix").value_or("");
  options.end_of_word_suffix = text("end_of_word_suffix").value_or("");
  options.fuse_unk = flag("fuse_unk");
  options.byte_fallback = flag("byte_fallback");
  options.ignore_merges = flag("ignore_merges");
  if (find_value<double>(model, "dropout", source).value_or(0) != 0) {
    fail(ErrorCode::unsupported, "{}: BPE with dropout is random and not supported", source);
  }
  if (!outline.merges) fail(ErrorCode::corrupt_file, "{}: key 'model.merges' is missing", source);
  return std::make_unique<Bpe>(take_vocabulary(outline, source), outline.merges->pairs, std::move(options), source);
}

std::unique_ptr<TokenModel> read_unigram(const Json& model, const Outline& outline, std::string_view source) {
  if (outline.scored_vocabulary.empty())
    fail(ErrorCode::corrupt_file, "{}: key 'model.vocab' is missing or no list", source);
  std::vector<UnigramPiece> pieces;
  JsonScanner scanner(outline.scored_vocabulary, source);
  scanner.read_array([&] {
    scanner.expect('[');
    UnigramPiece piece;
    piece.text = scanner.read_string();
    scanner.expect(',');
    piece.score = scanner.read_number();
    scanner.expect(']');
    pieces.push_back(std::move(piece));
  });
  UnigramOptions options;
  options.unk_id = find_value<int64_t>(model, "unk_id", source);
  options.byte_fallback = find_value<bool>(model, "byte_fallback", source).value_or(false);
  return std::make_unique<Unigram>(std::move(pieces), options, source);
}

std::unique_ptr<TokenModel> read_model(Outline& outline, std::string_view source) {
  const Json model = get_value<Json>(outline.root, "model", source);
  const auto word = [&](std::string_view key, std::string_view fallback) {
    return find_value<std::string>(model, key, source).value_or(std::string(fallback));
  };
  // Old files leave the type out; the members tell.
  std::string fallback = !outline.scored_vocabulary.empty()            ? "Unigram"
                         : model.contains("continuing_subword_prefix") ? "WordPiece"
                                                                       : "WordLevel";
  if (outline.merges) fallback = "BPE";
  const std::string type = word("type", fallback);
  if (type == "BPE") return read_bpe(model, outline, source);
  if (type == "Unigram") return read_unigram(model, outline, source);
  if (type == "WordPiece") {
    const auto limit = find_value<int64_t>(model, "max_input_chars_per_word", source).value_or(100);
    return std::make_unique<WordPiece>(take_vocabulary(outline, source), word("unk_token", "[UNK]"),
                                       word("continuing_subword_prefix", "##"), limit);
  }
  if (type == "WordLevel")
    return std::make_unique<WordLevel>(take_vocabulary(outline, source), word("unk_token", "<unk>"));
  fail(ErrorCode::unsupported, "{}: model type '{}' is not supported", source, type);
}

const Json& member(const Json& object, std::string_view key) {
  static const Json null;
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

}  // namespace

AddedToken read_added_token(const Json& json, std::string_view source) {
  AddedToken token;
  token.content = get_value<std::string>(json, "content", source);
  const auto flag = [&](std::string_view key, bool fallback) {
    return find_value<bool>(json, key, source).value_or(fallback);
  };
  token.special = flag("special", false);
  token.single_word = flag("single_word", false);
  token.lstrip = flag("lstrip", false);
  token.rstrip = flag("rstrip", false);
  token.normalized = flag("normalized", !token.special);
  return token;
}

std::vector<AddedToken> number_added_tokens(std::vector<AddedToken> tokens, const Vocabulary& vocabulary) {
  std::vector<AddedToken> result;
  std::unordered_map<std::string, size_t> known;
  const auto model_size = static_cast<int32_t>(vocabulary.size());
  int32_t next = model_size;
  for (AddedToken& token : tokens) {
    if (token.content.empty()) continue;
    if (const auto found = known.find(token.content); found != known.end()) {  // the last description counts
      token.id = result[found->second].id;
      result[found->second] = std::move(token);
      continue;
    }
    token.id = vocabulary.find(token.content).value_or(next);
    next = std::max(next, token.id + 1);
    known.emplace(token.content, result.size());
    result.push_back(std::move(token));
  }
  return result;
}

PipelineSteps read_tokenizer_json(std::string_view text, std::string_view source,
                                  const std::vector<AddedToken>& more_added_tokens) {
  if (const size_t valid = valid_utf8_prefix(text); valid < text.size()) {
    fail(ErrorCode::corrupt_file, "{}: invalid UTF-8 at byte {}", source, valid);
  }
  Outline outline = read_outline(text, source);
  PipelineSteps steps;
  steps.model = read_model(outline, source);
  steps.normalizer = make_normalizer(member(outline.root, "normalizer"), source);
  steps.pre_tokenizer = make_pre_tokenizer(member(outline.root, "pre_tokenizer"), source);
  steps.post_processor = PostProcessor(member(outline.root, "post_processor"), source);
  steps.decoder = make_decoder(member(outline.root, "decoder"), source);
  std::vector<AddedToken> added;
  std::unordered_set<std::string> known;
  for (const Json& token : member(outline.root, "added_tokens")) {
    added.push_back(read_added_token(token, source));
    known.insert(added.back().content);
  }
  for (const AddedToken& token : more_added_tokens) {
    if (!known.contains(token.content)) added.push_back(token);
  }
  steps.added_tokens =
      AddedTokens(number_added_tokens(std::move(added), steps.model->vocabulary()), steps.normalizer.get(), source);
  return steps;
}

}  // namespace nibble
