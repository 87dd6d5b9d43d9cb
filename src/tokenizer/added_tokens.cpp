// Leftmost-longest search for added tokens, with their conditions on neighbours.
#include "tokenizer/added_tokens.h"

#include <algorithm>

#include "tokenizer/regex.h"
#include "tokenizer/utf8.h"

namespace nibble {

namespace {

bool is_word_character(std::string_view character) {
  static const Regex word(R"(\A[\w\x{200c}\x{200d}])", "word character");
  return word.find(character, 0).has_value();
}

bool ends_with_word(std::string_view text) {
  return !text.empty() && is_word_character(text.substr(last_character_start(text)));
}

bool starts_with_word(std::string_view text) { return !text.empty() && is_word_character(text); }

size_t leading_space(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const auto [c, length] = front_code_point(text.substr(at));
    if (!is_whitespace(c)) break;
    at += length;
  }
  return at;
}

/// Where the white space at the end of `text` starts.
size_t trailing_space_start(std::string_view text) {
  while (!text.empty()) {
    const size_t last = last_character_start(text);
    if (!is_whitespace(front_code_point(text.substr(last)).value)) break;
    text = text.substr(0, last);
  }
  return text.size();
}

}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens, const Normalizer* normalizer, std::string_view source)
    : tokens_(std::move(tokens)) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const AddedToken& token = tokens_[i];
    by_content_.insert(token.content, token.id, source);
    const auto id = static_cast<size_t>(token.id);
    if (by_id_.size() <= id) by_id_.resize(id + 1, -1);
    by_id_[id] = static_cast<int32_t>(i);
    if (!token.normalized) {
      exact_.insert(token.content, static_cast<int32_t>(i));
      continue;
    }
    NormalizedText content{token.content, false};
    if (normalizer != nullptr) normalizer->normalize(content);
    if (normalized_.longest_prefix(content.text).length < content.text.size()) {  // of equal texts the first one counts
      normalized_.insert(content.text, static_cast<int32_t>(i));
    }
    tokens_[i].content = std::move(content.text);
  }
}

const AddedToken* AddedTokens::find(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= by_id_.size()) return nullptr;
  const int32_t index = by_id_[static_cast<size_t>(id)];
  return index < 0 ? nullptr : &tokens_[static_cast<size_t>(index)];
}

void AddedTokens::find_in(std::string_view text, const ByteTrie& trie, std::vector<Found>& found) const {
  found.clear();
  size_t open = 0;
  for (size_t at = 0; !trie.empty() && at < text.size();) {
    const auto [length, index] = trie.longest_prefix(text.substr(at));
    if (index < 0) {
      ++at;
      continue;
    }
    size_t begin = at;
    size_t end = at + length;
    at = end;
    const AddedToken& token = tokens_[static_cast<size_t>(index)];
    if (token.single_word && (ends_with_word(text.substr(0, begin)) || starts_with_word(text.substr(end)))) continue;
    if (token.lstrip) begin = std::max(trailing_space_start(text.substr(0, begin)), open);
    if (token.rstrip) end += leading_space(text.substr(end));
    if (open < begin) found.push_back({open, begin, -1});
    found.push_back({begin, end, token.id});
    open = end;
  }
  if (open < text.size()) found.push_back({open, text.size(), -1});
}

Pieces AddedTokens::split(std::string_view text, const Normalizer* normalizer) const {
  Pieces result;
  std::vector<Found> outer;
  std::vector<Found> inner;
  find_in(text, exact_, outer);
  for (const Found& part : outer) {
    if (part.id >= 0) {
      result.pieces.push_back({result.text.size(), result.text.size(), part.id, false});
      continue;
    }
    NormalizedText normalized{std::string(text.substr(part.begin, part.end - part.begin)), part.begin == 0};
    if (normalizer != nullptr) normalizer->normalize(normalized);
    find_in(normalized.text, normalized_, inner);
    const size_t base = result.text.size();
    result.text.append(normalized.text);
    for (const Found& piece : inner) {
      result.pieces.push_back(
          {base + piece.begin, base + piece.end, piece.id, normalized.at_start && piece.begin == 0});
    }
  }
  return result;
}

}  // namespace nibble
