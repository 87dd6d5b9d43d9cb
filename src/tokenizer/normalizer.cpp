// The normalizers of tokenizer.json, each as the `tokenizers` package rewrites.
#include "tokenizer/normalizer.h"

#include <optional>
#include <utility>
#include <vector>

#include "tokenizer/base64.h"
#include "tokenizer/byte_level.h"
#include "tokenizer/charsmap.h"
#include "tokenizer/expansion.h"
#include "tokenizer/regex.h"
#include "tokenizer/split_behavior.h"
#include "tokenizer/unicode_form.h"
#include "tokenizer/utf8.h"

namespace nibble {

namespace {

/// Rewrites character by character; rewrite(c, out) appends what c becomes. Dropping the first one ends at_start.
template <typename Rewrite>
void rewrite_characters(NormalizedText& text, Rewrite&& rewrite) {
  std::string out;
  out.reserve(text.text.size());
  for (std::string_view rest = text.text; !rest.empty();) {
    const auto [c, length] = front_code_point(rest);
    const bool first = rest.size() == text.text.size();
    rewrite(c, out);
    if (first && out.empty()) text.at_start = false;
    rest.remove_prefix(length);
  }
  text.text.swap(out);
}

class FormNormalizer final : public Normalizer {
 public:
  explicit FormNormalizer(UnicodeForm form) : form_(form) {}
  void normalize(NormalizedText& text) const override { to_unicode_form(text.text, form_); }

 private:
  UnicodeForm form_;
};

class LowercaseNormalizer final : public Normalizer {
 public:
  void normalize(NormalizedText& text) const override {
    rewrite_characters(text, [](char32_t c, std::string& out) { append_lowercase(out, c); });
  }
};

class StripAccentsNormalizer final : public Normalizer {
 public:
  void normalize(NormalizedText& text) const override {
    rewrite_characters(text, [](char32_t c, std::string& out) {
      if (!is_mark(c)) append_utf8(out, c);
    });
  }
};

class StripNormalizer final : public Normalizer {
 public:
  StripNormalizer(bool left, bool right) : left_(left), right_(right) {}
  void normalize(NormalizedText& text) const override {
    std::string_view rest = text.text;
    while (left_ && !rest.empty() && is_whitespace(front_code_point(rest).value))
      rest.remove_prefix(front_code_point(rest).length);
    if (rest.size() < text.text.size()) text.at_start = false;
    while (right_ && !rest.empty()) {
      const size_t last = last_character_start(rest);
      if (!is_whitespace(front_code_point(rest.substr(last)).value)) break;
      rest = rest.substr(0, last);
    }
    text.text = std::string(rest);
  }

 private:
  bool left_;
  bool right_;
};

class ReplaceNormalizer final : public Normalizer {
 public:
  ReplaceNormalizer(Regex pattern, std::string content) : pattern_(std::move(pattern)), content_(std::move(content)) {}
  void normalize(NormalizedText& text) const override {
    std::string out;
    size_t open = 0;
    pattern_.find_all(text.text, [&](size_t begin, size_t end) {
      if (begin == 0 && end > 0 && content_.empty()) text.at_start = false;
      out.append(text.text, open, begin - open).append(content_);
      check_expansion(out.size(), kMaxText);
      open = end;
    });
    if (open == 0 && out.empty()) return;
    text.text = out.append(text.text, open);
  }

 private:
  Regex pattern_;
  std::string content_;
};

class PrependNormalizer final : public Normalizer {
 public:
  explicit PrependNormalizer(std::string content) : content_(std::move(content)) {}
  void normalize(NormalizedText& text) const override {
    if (!text.text.empty()) text.text.insert(0, content_);
  }

 private:
  std::string content_;
};

class NmtNormalizer final : public Normalizer {
 public:
  void normalize(NormalizedText& text) const override {
    rewrite_characters(text, [](char32_t c, std::string& out) {
      const bool dropped =
          (c >= 1 && c <= 8) || c == 0x0B || (c >= 0x0E && c <= 0x1F) || c == 0x7F || c == 0x8F || c == 0x9F;
      if (dropped) return;
      const bool space = c == 9 || c == 10 || c == 12 || c == 13 || c == 0x1680 || (c >= 0x200B && c <= 0x200F) ||
                         c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xFEFF || c == 0xFFFD;
      append_utf8(out, space ? U' ' : c);
    });
  }
};

class BertNormalizer final : public Normalizer {
 public:
  BertNormalizer(const Json& json, std::string_view source)
      : clean_text_(find_value<bool>(json, "clean_text", source).value_or(true)),
        handle_chinese_chars_(find_value<bool>(json, "handle_chinese_chars", source).value_or(true)),
        lowercase_(find_value<bool>(json, "lowercase", source).value_or(true)),
        strip_accents_(find_value<bool>(json, "strip_accents", source).value_or(lowercase_)) {}

  void normalize(NormalizedText& text) const override {
    if (clean_text_) rewrite_characters(text, clean);
    if (handle_chinese_chars_) rewrite_characters(text, space_chinese);
    if (strip_accents_) {
      to_unicode_form(text.text, UnicodeForm::nfd);
      rewrite_characters(text, [](char32_t c, std::string& out) {
        if (!is_nonspacing_mark(c)) append_utf8(out, c);
      });
    }
    if (lowercase_) rewrite_characters(text, [](char32_t c, std::string& out) { append_lowercase(out, c); });
  }

 private:
  static void clean(char32_t c, std::string& out) {
    const bool kept = c == '\t' || c == '\n' || c == '\r';  // the control characters that count as white space
    if (!kept && (c == 0 || c == 0xFFFD || is_control(c))) return;
    append_utf8(out, is_whitespace(c) ? U' ' : c);
  }
  static void space_chinese(char32_t c, std::string& out) {
    const bool chinese = (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) ||
                         (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B73F) ||
                         (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) ||
                         (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
    if (chinese) out += ' ';
    append_utf8(out, c);
    if (chinese) out += ' ';
  }

  bool clean_text_;
  bool handle_chinese_chars_;
  bool lowercase_;
  bool strip_accents_;
};

class PrecompiledNormalizer final : public Normalizer {
 public:
  explicit PrecompiledNormalizer(Charsmap rules) : rules_(std::move(rules)) {}

  // A grapheme below six bytes is looked up whole, others by character; the shortest rule replaces all of what was
  // looked up. A text whose first character goes still counts as the start. This is the reference's way, not
  // SentencePiece's.
  void normalize(NormalizedText& text) const override {
    std::string out;
    for (std::string_view rest = text.text; !rest.empty();) {
      const std::string_view grapheme = rest.substr(0, grapheme_length(rest));
      rest.remove_prefix(grapheme.size());
      const auto whole = grapheme.size() < 6 ? rules_.find_shortest(grapheme) : std::nullopt;
      if (whole)
        out.append(whole->replacement);
      else
        append_by_character(grapheme, out);
    }
    text.text.swap(out);
  }

 private:
  void append_by_character(std::string_view grapheme, std::string& out) const {
    while (!grapheme.empty()) {
      const std::string_view part = grapheme.substr(0, utf8_length(static_cast<unsigned char>(grapheme[0])));
      const auto rule = rules_.find_shortest(part);
      out.append(rule ? rule->replacement : part);
      grapheme.remove_prefix(part.size());
    }
  }
  Charsmap rules_;
};

class ByteLevelNormalizer final : public Normalizer {
 public:
  void normalize(NormalizedText& text) const override {
    std::string out;
    append_byte_level(out, text.text);
    text.text.swap(out);
  }
};

class NormalizerSequence final : public Normalizer {
 public:
  explicit NormalizerSequence(std::vector<std::unique_ptr<Normalizer>> steps) : steps_(std::move(steps)) {}
  void normalize(NormalizedText& text) const override {
    const size_t limit = expansion_limit(text.text.size());
    for (const auto& step : steps_) {
      step->normalize(text);
      check_expansion(text.text.size(), limit);
    }
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> steps_;
};

std::unique_ptr<Normalizer> make_sequence(const Json& json, std::string_view source) {
  std::vector<std::unique_ptr<Normalizer>> steps;
  for (const Json& step : get_value<Json>(json, "normalizers", source)) {
    if (auto made = make_normalizer(step, source)) steps.push_back(std::move(made));
  }
  if (steps.empty()) return nullptr;
  return std::make_unique<NormalizerSequence>(std::move(steps));
}

}  // namespace

std::unique_ptr<Normalizer> make_normalizer(const Json& json, std::string_view source) {
  if (json.is_null()) return nullptr;
  const auto type = get_value<std::string>(json, "type", source);
  if (type == "Sequence") return make_sequence(json, source);
  if (type == "NFC") return std::make_unique<FormNormalizer>(UnicodeForm::nfc);
  if (type == "NFD") return std::make_unique<FormNormalizer>(UnicodeForm::nfd);
  if (type == "NFKC") return std::make_unique<FormNormalizer>(UnicodeForm::nfkc);
  if (type == "NFKD") return std::make_unique<FormNormalizer>(UnicodeForm::nfkd);
  if (type == "Lowercase") return std::make_unique<LowercaseNormalizer>();
  if (type == "StripAccents") return std::make_unique<StripAccentsNormalizer>();
  if (type == "Nmt") return std::make_unique<NmtNormalizer>();
  if (type == "BertNormalizer") return std::make_unique<BertNormalizer>(json, source);
  if (type == "ByteLevel") return std::make_unique<ByteLevelNormalizer>();
  if (type == "Prepend") return std::make_unique<PrependNormalizer>(get_value<std::string>(json, "prepend", source));
  if (type == "Strip") {
    return std::make_unique<StripNormalizer>(find_value<bool>(json, "strip_left", source).value_or(true),
                                             find_value<bool>(json, "strip_right", source).value_or(true));
  }
  if (type == "Replace") {
    return std::make_unique<ReplaceNormalizer>(read_pattern(json, source),
                                               get_value<std::string>(json, "content", source));
  }
  if (type == "Precompiled") {
    const auto encoded = find_value<std::string>(json, "precompiled_charsmap", source);
    if (!encoded) return nullptr;
    return std::make_unique<PrecompiledNormalizer>(Charsmap(decode_base64(*encoded, source), source));
  }
  fail(ErrorCode::unsupported, "{}: normalizer '{}' is not supported", source, type);
}

}  // namespace nibble
