// The pre-tokenizers of tokenizer.json, each as the `tokenizers` package cuts.
#include "tokenizer/pre_tokenizer.h"

#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "tokenizer/byte_level.h"
#include "tokenizer/expansion.h"
#include "tokenizer/regex.h"
#include "tokenizer/split_behavior.h"
#include "tokenizer/utf8.h"

namespace nibble {

namespace {

using Spans = std::vector<MatchSpan>;

/// Spans where single characters match; what lies between them is one span each.
template <typename Matches>
void find_characters(std::string_view text, Matches&& matches, Spans& spans) {
  size_t open = 0;
  for (size_t at = 0; at < text.size();) {
    const auto [c, length] = front_code_point(text.substr(at));
    if (matches(c)) {
      if (open < at) spans.push_back({open, at, false});
      spans.push_back({at, at + length, true});
      open = at + length;
    }
    at += length;
  }
  if (open < text.size()) spans.push_back({open, text.size(), false});
}

void find_regex(std::string_view text, const Regex& regex, Spans& spans) {
  size_t open = 0;
  regex.find_all(text, [&](size_t begin, size_t end) {
    if (open < begin) spans.push_back({open, begin, false});
    spans.push_back({begin, end, true});
    open = end;
  });
  if (open < text.size()) spans.push_back({open, text.size(), false});
}

/// Cuts every piece at what `find` finds.
template <typename Find>
void split_by(Pieces& pieces, SplitBehavior behavior, bool invert, Find&& find) {
  Spans spans;
  pieces.split([&](std::string_view text, auto&& add) {
    spans.clear();
    find(text, spans);
    if (invert) {
      for (MatchSpan& span : spans) span.is_match = !span.is_match;
    }
    apply_behavior(spans, behavior);
    for (const MatchSpan& span : spans) add(span.begin, span.end);
  });
}

class ByteLevelSplit final : public PreTokenizer {
 public:
  ByteLevelSplit(const Json& json, std::string_view source)
      : add_prefix_space_(find_value<bool>(json, "add_prefix_space", source).value_or(true)) {
    if (find_value<bool>(json, "use_regex", source).value_or(true)) {
      words_.emplace(R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", source);
    }
  }

  void apply(Pieces& pieces) const override {
    if (add_prefix_space_) {
      pieces.rewrite([](std::string_view text, bool, std::string& out) {
        if (!text.starts_with(' ')) out += ' ';
        out.append(text);
      });
    }
    if (words_) {
      pieces.split([&](std::string_view text, auto&& add) {
        size_t open = 0;
        words_->find_all(text, [&](size_t begin, size_t end) {
          add(open, begin);
          add(begin, end);
          open = end;
        });
        add(open, text.size());
      });
    }
    pieces.rewrite([](std::string_view text, bool, std::string& out) { append_byte_level(out, text); });
  }

 private:
  bool add_prefix_space_;
  std::optional<Regex> words_;
};

class RegexSplit final : public PreTokenizer {
 public:
  RegexSplit(Regex regex, SplitBehavior behavior, bool invert)
      : regex_(std::move(regex)), behavior_(behavior), invert_(invert) {}

  void apply(Pieces& pieces) const override {
    split_by(pieces, behavior_, invert_, [&](std::string_view text, Spans& spans) { find_regex(text, regex_, spans); });
  }

 private:
  Regex regex_;
  SplitBehavior behavior_;
  bool invert_;
};

class CharacterSplit final : public PreTokenizer {
 public:
  CharacterSplit(std::function<bool(char32_t)> matches, SplitBehavior behavior)
      : matches_(std::move(matches)), behavior_(behavior) {}

  void apply(Pieces& pieces) const override {
    split_by(pieces, behavior_, false,
             [&](std::string_view text, Spans& spans) { find_characters(text, matches_, spans); });
  }

 private:
  std::function<bool(char32_t)> matches_;
  SplitBehavior behavior_;
};

class MetaspaceSplit final : public PreTokenizer {
 public:
  MetaspaceSplit(const Json& json, std::string_view source)
      : replacement_(get_value<std::string>(json, "replacement", source)),
        prepend_(metaspace_prepend(json, source)),
        split_(find_value<bool>(json, "split", source).value_or(true)) {
    if (count_code_points(replacement_) != 1) {
      fail(ErrorCode::corrupt_file, "{}: replacement '{}' of Metaspace is not one character", source, replacement_);
    }
  }

  void apply(Pieces& pieces) const override {
    pieces.rewrite([&](std::string_view text, bool at_start, std::string& out) {
      const bool marked = text.starts_with(replacement_) || text.starts_with(' ');
      if (!marked && (prepend_ == PrependScheme::always || (prepend_ == PrependScheme::first && at_start))) {
        out.append(replacement_);
      }
      for (const char c : text) {
        if (c == ' ')
          out.append(replacement_);
        else
          out += c;
      }
    });
    if (!split_) return;
    pieces.split([&](std::string_view text, auto&& add) {  // each mark goes with what follows it
      size_t open = 0;
      for (size_t at = text.find(replacement_); at != std::string_view::npos;) {
        add(open, at);
        open = at;
        at = text.find(replacement_, at + replacement_.size());
      }
      add(open, text.size());
    });
  }

 private:
  std::string replacement_;
  PrependScheme prepend_;
  bool split_;
};

class FixedLengthSplit final : public PreTokenizer {
 public:
  explicit FixedLengthSplit(int64_t length) : length_(length) {}

  void apply(Pieces& pieces) const override {
    pieces.split([&](std::string_view text, auto&& add) {
      size_t open = 0;
      int64_t count = 0;
      for (size_t at = 0; at < text.size(); at += utf8_length(static_cast<unsigned char>(text[at]))) {
        if (count++ < length_) continue;
        add(open, at);
        open = at;
        count = 1;
      }
      add(open, text.size());
    });
  }

 private:
  int64_t length_;
};

class PreTokenizerSequence final : public PreTokenizer {
 public:
  explicit PreTokenizerSequence(std::vector<std::unique_ptr<PreTokenizer>> steps) : steps_(std::move(steps)) {}
  void apply(Pieces& pieces) const override {
    const size_t limit = expansion_limit(pieces.text.size());
    for (const auto& step : steps_) {
      step->apply(pieces);
      check_expansion(pieces.text.size(), limit);
    }
  }

 private:
  std::vector<std::unique_ptr<PreTokenizer>> steps_;
};

std::unique_ptr<PreTokenizer> characters(std::function<bool(char32_t)> matches, SplitBehavior behavior) {
  return std::make_unique<CharacterSplit>(std::move(matches), behavior);
}

std::unique_ptr<PreTokenizer> make_sequence(const Json& json, std::string_view source) {
  std::vector<std::unique_ptr<PreTokenizer>> steps;
  for (const Json& step : get_value<Json>(json, "pretokenizers", source))
    steps.push_back(make_pre_tokenizer(step, source));
  return std::make_unique<PreTokenizerSequence>(std::move(steps));
}

std::unique_ptr<PreTokenizer> make_bert(std::string_view) {
  std::vector<std::unique_ptr<PreTokenizer>> steps;
  steps.push_back(characters(is_whitespace, SplitBehavior::removed));
  steps.push_back(characters(is_punctuation, SplitBehavior::isolated));
  return std::make_unique<PreTokenizerSequence>(std::move(steps));
}

}  // namespace

std::unique_ptr<PreTokenizer> make_pre_tokenizer(const Json& json, std::string_view source) {
  if (json.is_null()) return nullptr;
  const auto type = get_value<std::string>(json, "type", source);
  if (type == "Sequence") return make_sequence(json, source);
  if (type == "ByteLevel") return std::make_unique<ByteLevelSplit>(json, source);
  if (type == "Metaspace") return std::make_unique<MetaspaceSplit>(json, source);
  if (type == "Split") {
    return std::make_unique<RegexSplit>(read_pattern(json, source), read_behavior(json, SplitBehavior::removed, source),
                                        find_value<bool>(json, "invert", source).value_or(false));
  }
  if (type == "Whitespace") {
    constexpr std::string_view kWords = R"([\w\x{200c}\x{200d}]+|[^\w\x{200c}\x{200d}\s]+)";
    return std::make_unique<RegexSplit>(Regex(kWords, source), SplitBehavior::removed, true);
  }
  if (type == "WhitespaceSplit") return characters(is_whitespace, SplitBehavior::removed);
  if (type == "BertPreTokenizer") return make_bert(source);
  if (type == "Punctuation") {
    return characters(is_punctuation, read_behavior(json, SplitBehavior::isolated, source));
  }
  if (type == "Digits") {
    const bool single = find_value<bool>(json, "individual_digits", source).value_or(false);
    return characters(is_numeric, single ? SplitBehavior::isolated : SplitBehavior::contiguous);
  }
  if (type == "CharDelimiterSplit") {
    const auto delimiter = get_value<std::string>(json, "delimiter", source);
    if (count_code_points(delimiter) != 1)
      fail(ErrorCode::corrupt_file, "{}: delimiter '{}' is not one character", source, delimiter);
    return characters([wanted = front_code_point(delimiter).value](char32_t c) { return c == wanted; },
                      SplitBehavior::removed);
  }
  if (type == "FixedLength") {
    const auto length = get_value<int64_t>(json, "length", source);
    if (length <= 0) fail(ErrorCode::corrupt_file, "{}: FixedLength of {}, expected more than 0", source, length);
    return std::make_unique<FixedLengthSplit>(length);
  }
  fail(ErrorCode::unsupported, "{}: pre_tokenizer '{}' is not supported", source, type);
}

}  // namespace nibble
