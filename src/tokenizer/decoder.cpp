// The decoders of tokenizer.json, each as the `tokenizers` package joins.
#include "tokenizer/decoder.h"

#include <optional>
#include <utility>

#include "tokenizer/byte_level.h"
#include "tokenizer/expansion.h"
#include "tokenizer/regex.h"
#include "tokenizer/split_behavior.h"
#include "tokenizer/utf8.h"

namespace nibble {

namespace {

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
}

class BytesDecoder final : public Decoder {
 public:
  /// `raw`: tokens are the bytes themselves, not ByteLevel characters.
  explicit BytesDecoder(bool raw) : raw_(raw) {}

  void decode(std::vector<std::string>& tokens, RunPosition) const override {
    std::string text;
    append_repaired_utf8(text, bytes_of(tokens));
    tokens.assign(1, std::move(text));
  }
  bool can_cut(const std::vector<std::string>& tokens) const override {
    return incomplete_utf8_tail(bytes_of(tokens)) == 0;
  }

 private:
  std::string bytes_of(const std::vector<std::string>& tokens) const {
    std::string bytes;
    for (const std::string& token : tokens) bytes += raw_ ? token : bytes_of_byte_level(token).value_or(token);
    return bytes;
  }
  bool raw_;
};

class ByteFallbackDecoder final : public Decoder {
 public:
  void decode(std::vector<std::string>& tokens, RunPosition) const override {
    std::vector<std::string> result;
    std::string bytes;
    const auto flush = [&] {
      if (bytes.empty()) return;
      if (is_valid_utf8(bytes))
        result.push_back(bytes);
      else
        result.insert(result.end(), bytes.size(), "\xEF\xBF\xBD");  // one U+FFFD a byte
      bytes.clear();
    };
    for (std::string& token : tokens) {
      if (const auto byte = byte_of(token)) {
        bytes += static_cast<char>(*byte);
        continue;
      }
      flush();
      result.push_back(std::move(token));
    }
    flush();
    tokens.swap(result);
  }
  // More bytes may make a run invalid, which changes all of its text.
  bool can_cut(const std::vector<std::string>& tokens) const override {
    return tokens.empty() || !byte_of(tokens.back());
  }

 private:
  static std::optional<unsigned char> byte_of(std::string_view token) {
    if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return std::nullopt;
    int value = 0;
    for (const char c : token.substr(3, 2)) {
      const bool digit = c >= '0' && c <= '9';
      const char letter = static_cast<char>(c | 0x20);
      if (!digit && (letter < 'a' || letter > 'f')) return std::nullopt;
      value = value * 16 + (digit ? c - '0' : letter - 'a' + 10);
    }
    return static_cast<unsigned char>(value);
  }
};

class FuseDecoder final : public Decoder {
 public:
  void decode(std::vector<std::string>& tokens, RunPosition) const override {
    std::string all;
    for (const std::string& token : tokens) all += token;
    tokens.assign(1, std::move(all));
  }
};

class StripDecoder final : public Decoder {
 public:
  StripDecoder(std::string content, size_t start, size_t stop, bool fused)
      : content_(std::move(content)), start_(start), stop_(stop), fused_(fused) {}

  void decode(std::vector<std::string>& tokens, RunPosition position) const override {
    for (std::string& token : tokens) {
      std::string_view rest = token;
      if (!fused_ || position.first) {
        for (size_t i = 0; i < start_ && rest.starts_with(content_); ++i) rest.remove_prefix(content_.size());
      }
      for (size_t i = 0; i < stop_ && rest.ends_with(content_); ++i) rest.remove_suffix(content_.size());
      token = std::string(rest);
    }
  }
  bool can_cut(const std::vector<std::string>&) const override { return !fused_ || stop_ == 0; }

 private:
  std::string content_;
  size_t start_;
  size_t stop_;
  bool fused_;  // what it strips is the whole text, not a token
};

class ReplaceDecoder final : public Decoder {
 public:
  ReplaceDecoder(Regex pattern, std::string content, bool local)
      : pattern_(std::move(pattern)), content_(std::move(content)), local_(local) {}

  void decode(std::vector<std::string>& tokens, RunPosition) const override {
    for (std::string& token : tokens) {
      std::string result;
      size_t open = 0;
      pattern_.find_all(token, [&](size_t begin, size_t end) {
        result.append(token, open, begin - open).append(content_);
        open = end;
      });
      token = result.append(token, open);
    }
  }
  bool can_cut(const std::vector<std::string>&) const override { return local_; }

 private:
  Regex pattern_;
  std::string content_;
  bool local_;  // a match never reaches over the end of a token
};

class MetaspaceDecoder final : public Decoder {
 public:
  MetaspaceDecoder(std::string replacement, bool prepended)
      : replacement_(std::move(replacement)), prepended_(prepended) {}

  void decode(std::vector<std::string>& tokens, RunPosition position) const override {
    for (size_t i = 0; i < tokens.size(); ++i)
      replace_all(tokens[i], replacement_, prepended_ && position.first && i == 0 ? "" : " ");
  }

 private:
  std::string replacement_;
  bool prepended_;
};

class WordPieceDecoder final : public Decoder {
 public:
  WordPieceDecoder(std::string prefix, bool cleanup) : prefix_(std::move(prefix)), cleanup_(cleanup) {}

  void decode(std::vector<std::string>& tokens, RunPosition position) const override {
    constexpr std::pair<std::string_view, std::string_view> kCleanups[] = {
        {" .", "."},   {" ?", "?"},           {" !", "!"},   {" ,", ","},     {" ' ", "'"},   {" n't", "n't"},
        {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (i > 0 || !position.first) {
        if (tokens[i].starts_with(prefix_))
          tokens[i].erase(0, prefix_.size());
        else
          tokens[i].insert(tokens[i].begin(), ' ');
      }
      if (!cleanup_) continue;
      for (const auto& [from, to] : kCleanups) replace_all(tokens[i], from, to);
    }
  }

 private:
  std::string prefix_;
  bool cleanup_;
};

class SuffixDecoder final : public Decoder {
 public:
  explicit SuffixDecoder(std::string suffix) : suffix_(std::move(suffix)) {}

  void decode(std::vector<std::string>& tokens, RunPosition position) const override {
    if (suffix_.empty()) return;
    for (size_t i = 0; i < tokens.size(); ++i)
      replace_all(tokens[i], suffix_, position.last && i + 1 == tokens.size() ? "" : " ");
  }
  // The last token loses its suffix, any other turns it into a space.
  bool can_cut(const std::vector<std::string>& tokens) const override {
    return suffix_.empty() || tokens.empty() || tokens.back().find(suffix_) == std::string::npos;
  }

 private:
  std::string suffix_;
};

class DecoderSequence final : public Decoder {
 public:
  explicit DecoderSequence(std::vector<std::unique_ptr<Decoder>> steps) : steps_(std::move(steps)) {}

  void decode(std::vector<std::string>& tokens, RunPosition position) const override {
    const size_t limit = expansion_limit(size_of(tokens));
    for (const auto& step : steps_) {
      step->decode(tokens, position);
      check_expansion(size_of(tokens), limit);
    }
  }
  bool can_cut(const std::vector<std::string>& tokens) const override {
    std::vector<std::string> current = tokens;
    for (const auto& step : steps_) {
      if (!step->can_cut(current)) return false;
      step->decode(current, {});
    }
    return true;
  }

 private:
  static size_t size_of(const std::vector<std::string>& tokens) {
    size_t size = 0;
    for (const std::string& token : tokens) size += token.size();
    return size;
  }
  std::vector<std::unique_ptr<Decoder>> steps_;
};

std::unique_ptr<Decoder> make_step(const Json& json, bool& fused, std::string_view source);

std::unique_ptr<Decoder> make_replace(const Json& json, bool fused, std::string_view source) {
  const Json pattern = get_value<Json>(json, "pattern", source);
  const auto text = find_value<std::string>(pattern, "String", source);
  const bool local = !fused || (text && count_code_points(*text) <= 1);
  return std::make_unique<ReplaceDecoder>(read_pattern(json, source), get_value<std::string>(json, "content", source),
                                          local);
}

std::unique_ptr<Decoder> make_strip(const Json& json, bool fused, std::string_view source) {
  const auto content = get_value<std::string>(json, "content", source);
  const auto start = get_value<int64_t>(json, "start", source);
  const auto stop = get_value<int64_t>(json, "stop", source);
  if (content.empty() || start < 0 || stop < 0) {
    fail(ErrorCode::corrupt_file, "{}: Strip decoder with content '{}', start {}, stop {}", source, content, start,
         stop);
  }
  return std::make_unique<StripDecoder>(content, static_cast<size_t>(start), static_cast<size_t>(stop), fused);
}

std::unique_ptr<Decoder> make_sequence(const Json& json, bool& fused, std::string_view source) {
  std::vector<std::unique_ptr<Decoder>> steps;
  for (const Json& step : get_value<Json>(json, "decoders", source)) steps.push_back(make_step(step, fused, source));
  return std::make_unique<DecoderSequence>(std::move(steps));
}

// `fused` says whether an earlier step has joined the tokens already.
std::unique_ptr<Decoder> make_step(const Json& json, bool& fused, std::string_view source) {
  const auto type = get_value<std::string>(json, "type", source);
  const auto text = [&](std::string_view key, std::string fallback) {
    return find_value<std::string>(json, key, source).value_or(std::move(fallback));
  };
  if (type == "Sequence") return make_sequence(json, fused, source);
  if (type == "Replace") return make_replace(json, fused, source);
  if (type == "Strip") return make_strip(json, fused, source);
  if (type == "ByteFallback") return std::make_unique<ByteFallbackDecoder>();
  if (type == "ByteLevel" || type == "Fuse") {
    fused = true;
    if (type == "Fuse") return std::make_unique<FuseDecoder>();
    return std::make_unique<BytesDecoder>(false);
  }
  if (type == "Metaspace") {
    const auto mark = get_value<std::string>(json, "replacement", source);
    if (mark.empty()) fail(ErrorCode::corrupt_file, "{}: empty replacement of Metaspace", source);
    return std::make_unique<MetaspaceDecoder>(mark, metaspace_prepend(json, source) != PrependScheme::never);
  }
  if (type == "WordPiece") {
    return std::make_unique<WordPieceDecoder>(text("prefix", "##"),
                                              find_value<bool>(json, "cleanup", source).value_or(true));
  }
  if (type == "BPEDecoder") return std::make_unique<SuffixDecoder>(text("suffix", "</w>"));
  fail(ErrorCode::unsupported, "{}: decoder '{}' is not supported", source, type);
}

}  // namespace

std::unique_ptr<Decoder> make_decoder(const Json& json, std::string_view source) {
  if (json.is_null()) return nullptr;
  bool fused = false;
  return make_step(json, fused, source);
}

std::unique_ptr<Decoder> make_raw_bytes_decoder() { return std::make_unique<BytesDecoder>(true); }

std::unique_ptr<Decoder> make_sentencepiece_decoder(bool strip_first_space) {
  std::vector<std::unique_ptr<Decoder>> steps;
  steps.push_back(std::make_unique<ReplaceDecoder>(Regex::literal("\xE2\x96\x81"), " ", true));
  steps.push_back(std::make_unique<ByteFallbackDecoder>());
  steps.push_back(std::make_unique<FuseDecoder>());
  if (strip_first_space) steps.push_back(std::make_unique<StripDecoder>(" ", 1, 0, true));
  return std::make_unique<DecoderSequence>(std::move(steps));
}

DecodedRun decode_run(const Decoder* decoder, std::vector<std::string> tokens, RunPosition position) {
  DecodedRun run;
  if (decoder == nullptr) {
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (i > 0 || !position.first) run.text += ' ';
      run.text += tokens[i];
    }
    return run;
  }
  run.can_cut = decoder->can_cut(tokens);
  decoder->decode(tokens, position);
  for (const std::string& token : tokens) run.text += token;
  return run;
}

}  // namespace nibble
